/*
 * engine/metrics.h: what a set has done so far, counted in the catalog, and all figures of it in
 * Prometheus' text format (https://prometheus.io/docs/instrumenting/exposition_formats/).
 */
#ifndef BK_ENGINE_METRICS_H
#define BK_ENGINE_METRICS_H

#include "base/buf.h"
#include "engine/engine_private.h"

/*
 * A job of this kind came to its end; body and result may be NULL.  Owner only, since nobody else
 * counts.  What cannot be written is lost: figures are no reason to fail a job.
 */
void bk_metrics_count(bk_engine_t *engine, bk_job_kind_t kind, const json_t *body,
                      bk_job_status_t status, const json_t *result, double seconds);

#endif
