/*
 * storage/config.c: a storage's settings as text, before any driver looks at them.
 */
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "storage/storage.h"

void bk_storage_config_free(bk_storage_config_t *config)
{
    if (config == NULL)
        return;
    for (unsigned i = 0; i < config->count; i++) {
        free(config->settings[i].key);
        free(config->settings[i].value);
    }
    free(config->settings);
    free(config->driver);
    free(config->name);
    memset(config, 0, sizeof *config);
}

bk_rc_t bk_storage_config_set(bk_storage_config_t *config, const char *key, const char *value,
                              bk_err_t *err)
{
    const char *name = config->name != NULL ? config->name : "";
    if (bk_storage_config_get(config, key) != NULL)
        return bk_err_set(err, BK_CONFIG, "storage %s: \"%s\" is given twice", name, key);
    void *more = realloc(config->settings, (config->count + 1) * sizeof *config->settings);
    if (more == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "storage %s: out of memory", name);
    config->settings = more;
    char *k = bk_strdup(key), *v = bk_strdup(value);
    if (k == NULL || v == NULL) {
        free(k);
        free(v);
        return bk_err_set(err, BK_NO_MEMORY, "storage %s: out of memory", name);
    }
    config->settings[config->count].key = k;
    config->settings[config->count].value = v;
    config->count++;
    return BK_OK;
}

const char *bk_storage_config_get(const bk_storage_config_t *config, const char *key)
{
    for (unsigned i = 0; i < config->count; i++)
        if (strcmp(config->settings[i].key, key) == 0)
            return config->settings[i].value;
    return NULL;
}
