/* An NBD server that does as little as one can do: what the peers and aiovblk are held against.
 *
 *     bare [--serial] [--delay MICROSECONDS] SOCKET | /dev/nbdN BYTES
 *
 * One thread, one connection at a time, a disk in memory, fixed newstyle, simple replies.  It
 * listens on SOCKET, or has the kernel attach /dev/nbdN to one end of a socket pair, as vblk and
 * BUSE do.
 *
 * By default it is the limit: as many requests as one read(2) brings are answered by one writev(2),
 * payloads of writes that are still on their way are received in place, replies are sent from the
 * disk.  With --serial it is like vblk and BUSE: it reads one request, and answers it by a write(2)
 * for the header and one for the data, before it reads the next.
 *
 * For benchmarks only: it trusts its client's offsets no further than to stay inside its memory.
 */
#define _GNU_SOURCE
#include "nbd.h"
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/nbd.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER = 1 << 20, BATCH = 512, REQUEST = 28, REPLY = 16, BLOCK = 4096 };
#define FLAGS 5 /* NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH */

static char *disk;
static uint64_t size;
static long delay;

/* What was received and not yet taken: buffer[begin..end). */
static char buffer[BUFFER];
static size_t begin, end;

/* The replies of one batch: a header each, and the data of reads. */
static struct simple_reply replies[BATCH];
static struct iovec parts[2 * BATCH];
static int reply_count, part_count;

static int read_all(int fd, void *to, size_t length)
{
    for (char *p = to; length;) {
        ssize_t got = read(fd, p, length);
        if (got <= 0)
            return -1;
        p += got;
        length -= got;
    }
    return 0;
}

static int write_all(int fd, const void *from, size_t length)
{
    for (const char *p = from; length;) {
        ssize_t put = write(fd, p, length);
        if (put <= 0)
            return -1;
        p += put;
        length -= put;
    }
    return 0;
}

static int option_reply(int fd, uint32_t option, uint32_t type, const void *data, uint32_t length)
{
    struct option_reply head = {
        htobe64(OPTION_REPLY_MAGIC), htobe32(option), htobe32(type), htobe32(length)};
    return write_all(fd, &head, sizeof head) || write_all(fd, data, length);
}

static int answer_option(int fd, uint32_t option)
{
    struct export_info info = {0, htobe64(size), htobe16(FLAGS)};

    if (option == OPT_EXPORT_NAME)
        return write_all(fd, &info.size, 10);
    if (option != OPT_GO && option != OPT_INFO)
        return option_reply(fd, option, option == OPT_ABORT ? REP_ACK : REP_ERR_UNSUP, "", 0);
    return option_reply(fd, option, REP_INFO, &info, sizeof info)
           || option_reply(fd, option, REP_ACK, "", 0);
}

static int handshake(int fd)
{
    struct hello hello = {htobe64(NBD_MAGIC), htobe64(IHAVEOPT), htobe16(HANDSHAKE_FLAGS)};
    uint32_t client_flags;

    if (write_all(fd, &hello, sizeof hello) || read_all(fd, &client_flags, 4))
        return -1;
    for (;;) {
        struct option_head head;
        char data[4096];
        if (read_all(fd, &head, sizeof head) || be32toh(head.length) > sizeof data
            || read_all(fd, data, be32toh(head.length)))
            return -1;
        uint32_t option = be32toh(head.option);
        if (answer_option(fd, option) || option == OPT_ABORT)
            return -1;
        if (option == OPT_GO || option == OPT_EXPORT_NAME)
            return 0;
    }
}

/* The error of a request, and itself in host byte order. */
static uint32_t check(struct request *r)
{
    r->type = be16toh(r->type);
    r->offset = be64toh(r->offset);
    r->length = be32toh(r->length);
    if (r->type == CMD_FLUSH)
        return 0;
    return r->type > CMD_FLUSH || r->offset > size || r->length > size - r->offset ? EINVAL : 0;
}

static void back_end(void)
{
    struct timespec wait = {delay / 1000000, delay % 1000000 * 1000};
    if (delay)
        nanosleep(&wait, NULL);
}

static int send_batch(int fd)
{
    struct iovec *part = parts;
    while (part_count) {
        ssize_t put = writev(fd, part, part_count < 1024 ? part_count : 1024);
        if (put < 0)
            return -1;
        while (part_count && (size_t)put >= part->iov_len) {
            put -= part->iov_len;
            part++;
            part_count--;
        }
        if (part_count) {
            part->iov_base = (char *)part->iov_base + put;
            part->iov_len -= put;
        }
    }
    reply_count = 0;
    return 0;
}

static void queue_reply(const struct request *r, uint32_t error)
{
    struct simple_reply *reply = &replies[reply_count++];
    *reply = (struct simple_reply){htobe32(SIMPLE_MAGIC), htobe32(error), r->cookie};
    parts[part_count++] = (struct iovec){reply, sizeof *reply};
    if (r->type == CMD_READ && !error)
        parts[part_count++] = (struct iovec){disk + r->offset, r->length};
}

/* Take a payload: first what is in the buffer, then the rest straight from the socket. */
static int take_payload(int fd, char *to, size_t length)
{
    size_t here = end - begin < length ? end - begin : length;
    memcpy(to, buffer + begin, here);
    begin += here;
    return read_all(fd, to + here, length - here);
}

static void serve_batches(int fd)
{
    for (begin = end = reply_count = part_count = 0;;) {
        while (end - begin >= REQUEST && reply_count < BATCH) {
            struct request r;
            memcpy(&r, buffer + begin, REQUEST);
            begin += REQUEST;
            uint32_t error = check(&r);
            if (r.type == CMD_DISC || (r.type == CMD_WRITE && error))
                return;
            if (r.type == CMD_WRITE && take_payload(fd, disk + r.offset, r.length))
                return;
            queue_reply(&r, error);
        }
        if (send_batch(fd))
            return;
        if (end - begin >= REQUEST)
            continue;
        memmove(buffer, buffer + begin, end - begin);
        end -= begin;
        begin = 0;
        ssize_t got = read(fd, buffer + end, BUFFER - end);
        if (got <= 0)
            return;
        end += got;
    }
}

static void serve_serially(int fd)
{
    for (;;) {
        struct request r;
        if (read_all(fd, &r, REQUEST))
            return;
        uint32_t error = check(&r);
        if (r.type == CMD_DISC || (r.type == CMD_WRITE && error))
            return;
        if (r.type == CMD_WRITE && read_all(fd, disk + r.offset, r.length))
            return;
        back_end();
        struct simple_reply reply = {htobe32(SIMPLE_MAGIC), htobe32(error), r.cookie};
        if (write_all(fd, &reply, REPLY))
            return;
        if (r.type == CMD_READ && !error && write_all(fd, disk + r.offset, r.length))
            return;
    }
}

static void *hold(void *nbd)
{
    ioctl(*(int *)nbd, NBD_DO_IT); /* returns when the device is detached */
    return NULL;
}

static void serve(int fd, int serial)
{
    int room = 4 << 20; /* the kernel may give less */
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
    serial ? serve_serially(fd) : serve_batches(fd);
}

static int serve_kernel(const char *device, int serial)
{
    int pair[2], nbd = open(device, O_RDWR);
    pthread_t holder;

    if (nbd < 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, pair)
        || ioctl(nbd, NBD_SET_BLKSIZE, BLOCK) || ioctl(nbd, NBD_SET_SIZE_BLOCKS, size / BLOCK)
        || ioctl(nbd, NBD_SET_FLAGS, FLAGS) || ioctl(nbd, NBD_SET_SOCK, pair[0])
        || pthread_create(&holder, NULL, hold, &nbd)) {
        perror(device);
        return 1;
    }
    serve(pair[1], serial);
    return 0;
}

static int serve_socket(const char *path, int serial)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 8)) {
        perror(path);
        return 1;
    }
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        if (!handshake(fd))
            serve(fd, serial);
        close(fd);
    }
}

int main(int argc, char **argv)
{
    int serial = 0;
    for (; argc > 1 && argv[1][0] == '-'; argc--, argv++) {
        if (!strcmp(argv[1], "--serial")) {
            serial = 1;
        } else if (!strcmp(argv[1], "--delay") && argc > 2) {
            delay = atol(argv[2]);
            argc--, argv++;
        }
    }
    if (argc != 3 || (delay && !serial)) {
        fprintf(stderr, "usage: bare [--serial [--delay MICROSECONDS]] SOCKET|/dev/nbdN BYTES\n");
        return 2;
    }
    size = strtoull(argv[2], NULL, 10);
    disk = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (disk == MAP_FAILED) {
        perror("bare");
        return 1;
    }
    signal(SIGPIPE, SIG_IGN);
    int kernel = !strncmp(argv[1], "/dev/nbd", 8);
    return kernel ? serve_kernel(argv[1], serial) : serve_socket(argv[1], serial);
}
