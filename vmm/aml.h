/*
 * aml.h - just enough of an AML writer for our DSDT. Appends to an rp_buf; blocks are opened and closed in pairs.
 * Source: ACPI 6.5, chapter 20 (AML byte stream), chapter 6.4 (resource descriptors).
 */
#ifndef RP_VMM_AML_H
#define RP_VMM_AML_H

#include "core/bytes.h"

/* Opens a block whose length is filled in by rp_aml_close. `name`: a path such as "_SB_", "\\_SB_", of 4-byte segments. */
size_t rp_aml_scope(struct rp_buf *b, const char *name);
size_t rp_aml_device(struct rp_buf *b, const char *name);
size_t rp_aml_method(struct rp_buf *b, const char *name, unsigned args);
size_t rp_aml_package(struct rp_buf *b, uint8_t count);
void rp_aml_close(struct rp_buf *b, size_t block);

void rp_aml_name(struct rp_buf *b, const char *name);      /* Name(name, …the next object…) */
void rp_aml_int(struct rp_buf *b, uint64_t v);
void rp_aml_string(struct rp_buf *b, const char *s);
void rp_aml_eisaid(struct rp_buf *b, const char *id);      /* "PNP0A08" */
void rp_aml_path(struct rp_buf *b, const char *name);
void rp_aml_notify(struct rp_buf *b, const char *name, uint64_t value);

/* A resource template: descriptors between begin and end. */
struct rp_aml_crs { size_t block; size_t start; };
struct rp_aml_crs rp_aml_crs_begin(struct rp_buf *b);       /* Buffer(…){ */
void rp_aml_crs_io(struct rp_buf *b, uint16_t port, uint8_t len);
void rp_aml_crs_irq(struct rp_buf *b, unsigned irq);
void rp_aml_crs_bus(struct rp_buf *b, uint16_t first, uint16_t last);
void rp_aml_crs_io_window(struct rp_buf *b, uint16_t first, uint16_t last);
void rp_aml_crs_memory_window(struct rp_buf *b, uint32_t first, uint32_t last);
void rp_aml_crs_end(struct rp_buf *b, struct rp_aml_crs c);

#endif
