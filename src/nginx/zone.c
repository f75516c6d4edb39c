/*
 * nginx/zone.c: the shared zone: what the runner publishes and every worker
 * serves, and the wish to cancel a job.
 *
 * The zone survives a reload, and so do the texts in it: /status and /health
 * are never without an answer while the runner changes.  All of it is under
 * the zone's mutex, which is held for a copy of a few kilobytes at most.
 */

#include "nginx/module.h"


/* Larger texts are refused: one set must not eat the zone of all. */
#define NGX_HTTP_BACKUP_TEXT_MAX  262144


static ngx_int_t ngx_http_backup_zone_init(ngx_shm_zone_t *zone, void *data);
static ngx_http_backup_slot_t *ngx_http_backup_zone_slot(
    ngx_slab_pool_t *shpool, ngx_queue_t *slots, ngx_str_t *name);


ngx_int_t
ngx_http_backup_zone_add(ngx_conf_t *cf, ngx_http_backup_main_conf_t *bmcf)
{
    if (bmcf->zone_name.len == 0) {
        ngx_str_set(&bmcf->zone_name, "ngx_backup");
        bmcf->zone_size = 2 * 1024 * 1024;
    }

    bmcf->zone = ngx_shared_memory_add(cf, &bmcf->zone_name, bmcf->zone_size,
                                       &ngx_http_backup_module);
    if (bmcf->zone == NULL) {
        return NGX_ERROR;
    }

    if (bmcf->zone->data) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "zone \"%V\" is in use already",
                           &bmcf->zone_name);
        return NGX_ERROR;
    }

    bmcf->zone->init = ngx_http_backup_zone_init;
    bmcf->zone->data = bmcf;

    return NGX_OK;
}


static ngx_int_t
ngx_http_backup_zone_init(ngx_shm_zone_t *zone, void *data)
{
    ngx_uint_t                    i;
    ngx_queue_t                  *slots;
    ngx_slab_pool_t              *shpool;
    ngx_http_backup_set_t       **sets;
    ngx_http_backup_main_conf_t  *bmcf = zone->data;

    shpool = (ngx_slab_pool_t *) zone->shm.addr;

    if (data || zone->shm.exists) {
        slots = shpool->data;

    } else {
        slots = ngx_slab_calloc(shpool, sizeof(ngx_queue_t));
        if (slots == NULL) {
            return NGX_ERROR;
        }

        ngx_queue_init(slots);
        shpool->data = slots;
    }

    sets = bmcf->sets.elts;

    for (i = 0; i < bmcf->sets.nelts; i++) {
        sets[i]->shpool = shpool;
        sets[i]->slot = ngx_http_backup_zone_slot(shpool, slots,
                                                  &sets[i]->name);
        if (sets[i]->slot == NULL) {
            ngx_log_error(NGX_LOG_EMERG, zone->shm.log, 0,
                          "zone \"%V\" is too small: enlarge backup_zone",
                          &zone->shm.name);
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}


/* Workers of an older cycle may use the zone at this moment. */

static ngx_http_backup_slot_t *
ngx_http_backup_zone_slot(ngx_slab_pool_t *shpool, ngx_queue_t *slots,
    ngx_str_t *name)
{
    ngx_queue_t             *q;
    ngx_http_backup_slot_t  *slot;

    ngx_shmtx_lock(&shpool->mutex);

    for (q = ngx_queue_head(slots);
         q != ngx_queue_sentinel(slots);
         q = ngx_queue_next(q))
    {
        slot = ngx_queue_data(q, ngx_http_backup_slot_t, queue);

        if (ngx_strlen(slot->name) == name->len
            && ngx_memcmp(slot->name, name->data, name->len) == 0)
        {
            goto found;
        }
    }

    slot = ngx_slab_calloc_locked(shpool, sizeof(ngx_http_backup_slot_t));

    if (slot) {
        ngx_memcpy(slot->name, name->data, name->len);
        ngx_queue_insert_tail(slots, &slot->queue);
    }

found:

    ngx_shmtx_unlock(&shpool->mutex);

    return slot;
}


void
ngx_http_backup_put(ngx_http_backup_set_t *bset, ngx_uint_t which,
    const char *data, size_t len, uint64_t tag)
{
    u_char                  *p;
    size_t                   size;
    ngx_uint_t               full;
    ngx_http_backup_text_t  *text;

    full = 0;
    text = &bset->slot->texts[which];

    ngx_shmtx_lock(&bset->shpool->mutex);

    if (len > text->size) {
        size = ngx_align(len + len / 4, 1024);
        p = len > NGX_HTTP_BACKUP_TEXT_MAX ? NULL
            : ngx_slab_alloc_locked(bset->shpool, size);

        if (p == NULL) {
            full = 1;

        } else {
            if (text->data) {
                ngx_slab_free_locked(bset->shpool, text->data);
            }

            text->data = p;
            text->size = size;
        }
    }

    if (!full) {
        if (len) {
            ngx_memcpy(text->data, data, len);
        }

        text->len = len;
        text->tag = tag;
        text->time = ngx_time();
    }

    ngx_shmtx_unlock(&bset->shpool->mutex);

    if (full) {
        ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, 0,
                      "backup \"%V\": no room for %uz bytes in the shared "
                      "zone: enlarge backup_zone", &bset->name, len);
    }
}


ngx_int_t
ngx_http_backup_get(ngx_http_backup_set_t *bset, ngx_uint_t which,
    ngx_pool_t *pool, ngx_str_t *result, uint64_t *tag, time_t *time)
{
    size_t                   size;
    ngx_http_backup_text_t  *text;

    text = &bset->slot->texts[which];

    /* The length may grow before the lock is taken; then try again. */

    for ( ;; ) {
        size = *(volatile size_t *) &text->len;

        result->data = ngx_pnalloc(pool, size + 1);
        if (result->data == NULL) {
            return NGX_ERROR;
        }

        ngx_shmtx_lock(&bset->shpool->mutex);

        if (text->len > size) {
            ngx_shmtx_unlock(&bset->shpool->mutex);
            continue;
        }

        result->len = text->len;

        if (result->len) {
            ngx_memcpy(result->data, text->data, text->len);
        }

        if (tag) {
            *tag = text->tag;
        }

        if (time) {
            *time = text->time;
        }

        ngx_shmtx_unlock(&bset->shpool->mutex);

        break;
    }

    result->data[result->len] = '\0';

    return result->len ? NGX_OK : NGX_DECLINED;
}


static void
ngx_http_backup_copy_id(u_char *to, const char *id)
{
    (void) ngx_cpystrn(to, (u_char *) id, BK_JOB_ID);
}


void
ngx_http_backup_running(ngx_http_backup_set_t *bset, const char *id)
{
    ngx_shmtx_lock(&bset->shpool->mutex);

    ngx_http_backup_copy_id(bset->slot->running, id);

    /* A wish may come as soon as the job is taken, before it is known here. */

    if (ngx_strcmp(bset->slot->cancel, id) != 0) {
        bset->slot->cancel[0] = '\0';
    }

    bset->slot->texts[NGX_HTTP_BACKUP_PROGRESS].len = 0;

    ngx_shmtx_unlock(&bset->shpool->mutex);
}


void
ngx_http_backup_ended(ngx_http_backup_set_t *bset)
{
    ngx_shmtx_lock(&bset->shpool->mutex);

    bset->slot->ended++;

    ngx_shmtx_unlock(&bset->shpool->mutex);
}


ngx_uint_t
ngx_http_backup_ended_count(ngx_http_backup_set_t *bset)
{
    return *(volatile ngx_uint_t *) &bset->slot->ended;
}


ngx_uint_t
ngx_http_backup_is_running(ngx_http_backup_set_t *bset, const char *id,
    ngx_uint_t *canceling)
{
    ngx_uint_t  running;

    ngx_shmtx_lock(&bset->shpool->mutex);

    running = (id[0] != '\0' && ngx_strcmp(bset->slot->running, id) == 0);
    *canceling = (running && ngx_strcmp(bset->slot->cancel, id) == 0);

    ngx_shmtx_unlock(&bset->shpool->mutex);

    return running;
}


void
ngx_http_backup_cancel(ngx_http_backup_set_t *bset, const char *id)
{
    ngx_shmtx_lock(&bset->shpool->mutex);

    ngx_http_backup_copy_id(bset->slot->cancel, id);

    ngx_shmtx_unlock(&bset->shpool->mutex);
}


void
ngx_http_backup_heir(ngx_http_backup_set_t *bset, ngx_uint_t ready)
{
    ngx_shmtx_lock(&bset->shpool->mutex);

    /* an older runner has nothing to say any more */

    if (!ready || bset->slot->heir == ngx_pid) {
        bset->slot->heir = ngx_pid;
        bset->slot->heir_ready = ready;
    }

    ngx_shmtx_unlock(&bset->shpool->mutex);
}


ngx_uint_t
ngx_http_backup_heir_comes(ngx_http_backup_set_t *bset)
{
    ngx_uint_t  comes;

    ngx_shmtx_lock(&bset->shpool->mutex);

    comes = (bset->slot->heir != ngx_pid && !bset->slot->heir_ready);

    ngx_shmtx_unlock(&bset->shpool->mutex);

    return comes;
}
