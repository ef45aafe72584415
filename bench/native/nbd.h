/* What bare.c and loadgen.c need of the NBD protocol, fixed newstyle; all numbers are big-endian.
 *
 * github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
 */
#ifndef NBD_H
#define NBD_H
#include <stdint.h>

#define NBD_MAGIC 0x4e42444d41474943ull
#define IHAVEOPT 0x49484156454f5054ull
#define OPTION_REPLY_MAGIC 0x3e889045565a9ull
#define REQUEST_MAGIC 0x25609513u
#define SIMPLE_MAGIC 0x67446698u
#define STRUCTURED_MAGIC 0x668e33efu
#define HANDSHAKE_FLAGS 3 /* fixed newstyle, no zeroes */

enum { OPT_EXPORT_NAME = 1, OPT_ABORT = 2, OPT_INFO = 6, OPT_GO = 7, OPT_STRUCTURED_REPLY = 8 };
enum { REP_ACK = 1, REP_INFO = 3 };
#define REP_ERR_UNSUP 0x80000001u
enum { CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH };
enum { CHUNK_NONE, CHUNK_OFFSET_DATA, CHUNK_OFFSET_HOLE };
enum { CHUNK_DONE = 1 };

#define PACKED __attribute__((packed))

struct hello {
    uint64_t magic, have_option;
    uint16_t flags;
} PACKED;

struct option_head {
    uint64_t magic;
    uint32_t option, length;
} PACKED;

struct option_reply {
    uint64_t magic;
    uint32_t option, type, length;
} PACKED;

struct export_info {
    uint16_t type; /* 0 */
    uint64_t size;
    uint16_t flags;
} PACKED;

struct request {
    uint32_t magic;
    uint16_t flags, type;
    uint64_t cookie, offset;
    uint32_t length;
} PACKED;

struct simple_reply {
    uint32_t magic, error;
    uint64_t cookie;
} PACKED;

struct chunk {
    uint32_t magic;
    uint16_t flags, type;
    uint64_t cookie;
    uint32_t length;
} PACKED;

#endif
