/*
 * stream.h - the epoch stream, version 1: how epochs travel on a socket, lie in a file and in the archive.
 * docs/stream.md is the format's document, byte for byte; this is its code.
 *
 * A stream is a row of records. A record is a 24-byte header and a payload:
 *
 *     0  u16 magic 0x5052 ("RP")   2  u8 type    3  u8 flags (bit 0: optional, may be skipped when unknown)
 *     4  u32 payload length        8  u64 sequence (records on this lane, from 0)
 *    16  u64 XXH3_64bits of the payload, seeded with XXH3_64bits of bytes 0-15
 *
 * order:  BEGIN  { EPOCH  { RAM | SECTION | DISK | JOURNAL }*  EPOCH_END }*  END
 *
 * RAM payload:  u32 pass | u32 entries | entries × { u40 gfn | u8 codec | u16 arg } | page payloads in order.
 *   zero, raw: arg = pages in the run; lz4, delta: arg = payload bytes of this one page. pass < 2^31.
 *   A page may come more than once in an epoch (sent early, dirtied again): the highest pass wins, then the
 *   later record on the same lane. An epoch's content is what the highest passes say.
 *
 * Every length is checked before it is used; a record that fails is refused with its stream offset, type
 * and reason (-EBADMSG, RP_EXIT_DAMAGED), a stream from a newer version with both versions.
 */
#ifndef RP_CORE_STREAM_H
#define RP_CORE_STREAM_H

#include "core/codec.h"
#include "core/epoch.h"

#include <sys/types.h>

#define RP_STREAM_VERSION 1u
#define RP_RECORD_MAGIC 0x5052u
#define RP_RECORD_HEADER 24u
#define RP_RECORD_MAX (4u << 20)        /* payload bytes: bounds what a stranger can make us allocate */
#define RP_RAM_ENTRIES_MAX 1024u        /* per record */
#define RP_RAM_PASS_MAX 0x7FFFFFFFu
#define RP_DISK_ENTRIES_MAX 4096u       /* per record */
#define RP_SECTIONS_MAX 1024u           /* per epoch */
#define RP_SECTIONS_BYTES_MAX (16u << 20)

enum rp_record_type {                   /* permanent numbers */
    RP_REC_BEGIN = 1,                   /* u32 version, u32 reserved, str producer */
    RP_REC_EPOCH = 2,                   /* rp_epoch_header_table */
    RP_REC_RAM = 3,
    RP_REC_SECTION = 4,                 /* str name, u32 instance, u16 version, TLV fields */
    RP_REC_DISK = 5,                    /* u32 disk, u32 entries, entries × {u64 offset, u32 len, u32 kind}, data of the writes */
    RP_REC_JOURNAL = 6,
    RP_REC_EPOCH_END = 7,               /* rp_epoch_trailer_table */
    RP_REC_END = 8,                     /* u64 epochs */
};

struct rp_record {
    uint8_t type, flags;
    uint32_t len;
    uint64_t seq;
    uint64_t offset;        /* where in the stream its header began: for messages */
    const uint8_t *payload;
};

/* --- writing: a record is built in a buffer; the header is filled in and sealed at the end. --- */

/* Reserves the header in b; returns its position for rp_record_seal. */
size_t rp_record_open(struct rp_buf *b, uint8_t type, uint8_t flags);
/* Fills in length, sequence and checksum of the record that began at `pos`. -ENOMEM when b failed. */
int rp_record_seal(struct rp_buf *b, size_t pos, uint64_t seq) RP_MUST_CHECK;

int rp_put_begin(struct rp_buf *b, uint64_t seq) RP_MUST_CHECK;
int rp_put_epoch(struct rp_buf *b, uint64_t seq, const struct rp_epoch_header *h) RP_MUST_CHECK;
int rp_put_section(struct rp_buf *b, uint64_t seq, const struct rp_section *s) RP_MUST_CHECK;
int rp_put_epoch_end(struct rp_buf *b, uint64_t seq, const struct rp_epoch_trailer *t) RP_MUST_CHECK;
int rp_put_end(struct rp_buf *b, uint64_t seq, uint64_t epochs) RP_MUST_CHECK;

/* --- reading --- */

/* Checks magic, length bound and, with the payload present, sequence and checksum. `hdr`: 24 bytes.
 * rp_record_peek looks only at the header (how much to read next). -EBADMSG. */
int rp_record_peek(const uint8_t *hdr, uint64_t offset, struct rp_record *out, struct rp_error *err) RP_MUST_CHECK;
int rp_record_check(const uint8_t *hdr, const uint8_t *payload, uint64_t expect_seq, struct rp_record *rec,
                    struct rp_error *err) RP_MUST_CHECK;

int rp_get_begin(const struct rp_record *r, uint32_t *version, struct rp_error *err) RP_MUST_CHECK;
int rp_get_epoch(const struct rp_record *r, struct rp_epoch_header *h, struct rp_error *err) RP_MUST_CHECK;
int rp_get_section(const struct rp_record *r, struct rp_section *s, struct rp_error *err) RP_MUST_CHECK;
int rp_get_epoch_end(const struct rp_record *r, struct rp_epoch_trailer *t, struct rp_error *err) RP_MUST_CHECK;

/* One page entry of a RAM record, handed to the callback in order; everything is range-checked before. */
struct rp_ram_entry {
    uint64_t gfn;
    uint32_t pages;             /* run length: 1 for lz4 and delta */
    uint8_t codec;              /* enum rp_codec_id */
    const uint8_t *payload;     /* raw: pages × 4096 bytes; lz4, delta: len bytes; zero: NULL */
    uint32_t len;
    uint64_t next_gfn;          /* of the entry after this one, or gfn again: a hint of what to fetch ahead */
};
/* Walks a RAM record twice: once to validate all of it against `ram`, then calling fn for each entry.
 * fn's non-zero return stops the walk and is returned. *pass: the record's pass. -EBADMSG. */
int rp_ram_walk(const struct rp_record *r, const struct rp_ram_view *ram, uint32_t *pass,
                int (*fn)(void *ctx, const struct rp_ram_entry *e, struct rp_error *err), void *ctx,
                struct rp_error *err) RP_MUST_CHECK;

/* One entry of a DISK record. Offsets are bytes on the guest's disk number `disk`; the disk's size is the callee's to check.
 * DISCARD reads as zeroes like ZERO; the space may be given back. SYNC (docs/disks.md): from here on, in this epoch, comes
 * what the receiver's copy of the disk lacks; offset = the disk's size, data = 16 bytes sync id, u64 base epoch. */
enum rp_disk_kind {             /* permanent numbers */
    RP_DISK_KIND_WRITE = 1, RP_DISK_KIND_ZERO = 2, RP_DISK_KIND_DISCARD = 3, RP_DISK_KIND_SYNC = 4
};
#define RP_DISK_SYNC_BYTES 24u
struct rp_disk_entry {
    uint32_t disk;
    uint32_t kind;
    uint64_t offset;
    uint32_t len;
    const uint8_t *data;        /* WRITE, SYNC: len bytes; otherwise NULL */
};
/* Where a copy of a VM's disks stands: whose chain of disk writes, and the newest epoch it holds of it. */
struct rp_disk_base {
    uint8_t sync_id[16];        /* all zero: it holds nothing */
    uint64_t epoch;
};
/* Appends u32 length and the payload of a DISK record with this one entry (what struct rp_cut.disk is a row of). */
void rp_disk_put(struct rp_buf *b, const struct rp_disk_entry *e);
void rp_disk_put_sync(struct rp_buf *b, uint32_t disk, uint64_t size_bytes, const struct rp_disk_base *base);
/* What a SYNC entry, which rp_disk_walk has accepted, says. */
struct rp_disk_base rp_disk_sync_of(const struct rp_disk_entry *e);
/* Like rp_ram_walk: all of the record is validated first, then fn (may be NULL) gets each entry in order. -EBADMSG. */
int rp_disk_walk(const struct rp_record *r, int (*fn)(void *ctx, const struct rp_disk_entry *e, struct rp_error *err), void *ctx,
                 struct rp_error *err) RP_MUST_CHECK;

/* A whole stream from a descriptor (file, pipe, socket), record by record. Reads ahead into its own
 * buffer; the record's payload is valid until the next call. */
struct rp_stream_reader;
int rp_stream_reader_create(int fd, struct rp_stream_reader **out, struct rp_error *err) RP_MUST_CHECK; /* borrows fd */
/* The same from anything: `read` gives 1 … len bytes, 0 at the end, or -errno. */
typedef ssize_t rp_stream_read(void *ctx, void *buf, size_t len);
int rp_stream_reader_create_fn(rp_stream_read *read, void *ctx, struct rp_stream_reader **out, struct rp_error *err) RP_MUST_CHECK;
void rp_stream_reader_destroy(struct rp_stream_reader *r);
/* 1: *out holds a record; 0: the stream ended after END; <0: damaged, cut short (says where) or a read failed. */
int rp_stream_next(struct rp_stream_reader *r, struct rp_record *out, struct rp_error *err) RP_MUST_CHECK;

#endif
