/* One connection of loadgen: handshake, requests, and replies, of which each is checked. */
#define _GNU_SOURCE
#include "loadgen.h"
#include "nbd.h"
#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { MAX_NAME = 4096, STAMP_UNIT = 4096, MIN_INPUT = 1 << 20, SEND_BUFFER = 4 << 20 };
#define STAMP 0xa5a5a5a500000000ull /* so that no block looks like one that was never written */

static void send_all(int fd, const void *from, size_t length)
{
    for (const char *p = from; length;) {
        ssize_t put = send(fd, p, length, MSG_NOSIGNAL);
        if (put <= 0)
            die("cannot send: %s", strerror(errno));
        p += put;
        length -= put;
    }
}

static void receive_all(int fd, void *to, size_t length)
{
    for (char *p = to; length;) {
        ssize_t got = recv(fd, p, length, 0);
        if (got <= 0)
            die("the server closed the connection in the handshake");
        p += got;
        length -= got;
    }
}

static void send_option(int fd, uint32_t option, const void *data, uint32_t length)
{
    struct option_head head = {htobe64(IHAVEOPT), htobe32(option), htobe32(length)};
    send_all(fd, &head, sizeof head);
    send_all(fd, data, length);
}

/* Receive one reply to an option; returns its type, and what fits of its data. */
static uint32_t option_reply(int fd, void *data, size_t room)
{
    struct option_reply head;
    char rest[4096];
    receive_all(fd, &head, sizeof head);
    uint32_t length = be32toh(head.length);
    if (be64toh(head.magic) != OPTION_REPLY_MAGIC || length > sizeof rest)
        die("no NBD server: a wrong reply to an option");
    receive_all(fd, rest, length);
    memcpy(data, rest, length < room ? length : room);
    return be32toh(head.type);
}

/* Ask for the export; what it is comes with the answer. Returns its size. */
static uint64_t go(int fd)
{
    char data[4 + MAX_NAME + 2] = {0}; /* no further information is asked for */
    uint32_t length = strlen(options.export), type, prefix = htobe32(length);
    struct export_info info;
    uint64_t size = 0;

    if (length > MAX_NAME)
        die("the export's name is longer than %d bytes", MAX_NAME);
    memcpy(data, &prefix, sizeof prefix);
    memcpy(data + sizeof prefix, options.export, length);
    send_option(fd, OPT_GO, data, sizeof prefix + length + 2);
    while ((type = option_reply(fd, &info, sizeof info)) == REP_INFO)
        if (!info.type)
            size = be64toh(info.size);
    if (type != REP_ACK)
        die("the server refuses the export \"%s\": error %#x", options.export, type);
    return size;
}

static uint64_t handshake(int fd)
{
    struct hello hello;
    uint32_t flags = htobe32(HANDSHAKE_FLAGS);

    receive_all(fd, &hello, sizeof hello);
    if (be64toh(hello.magic) != NBD_MAGIC || be64toh(hello.have_option) != IHAVEOPT)
        die("no newstyle NBD server");
    send_all(fd, &flags, sizeof flags);
    if (options.structured) {
        send_option(fd, OPT_STRUCTURED_REPLY, "", 0);
        if (option_reply(fd, &hello, sizeof hello) != REP_ACK)
            die("the server has no structured replies");
    }
    return go(fd);
}

void open_connection(struct connection *c)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int room = SEND_BUFFER; /* the kernel may give less */
    size_t frame = sizeof(struct request) + options.block_size;

    if (strlen(options.socket) >= sizeof address.sun_path)
        die("the socket's path is too long: %s", options.socket);
    strcpy(address.sun_path, options.socket);
    c->fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, sizeof address))
        die("%s: %s", options.socket, strerror(errno));
    setsockopt(c->fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
    c->size = handshake(c->fd);
    if (options.size && options.size < c->size)
        c->size = options.size;
    if (c->size < options.block_size)
        die("the export has %llu bytes only", (unsigned long long)c->size);
    c->slots = allocate(options.depth, sizeof *c->slots);
    c->free_slots = allocate(options.depth, sizeof *c->free_slots);
    for (int i = options.depth; i--;)
        c->free_slots[c->free_count++] = i;
    c->in_size = 4 * frame > MIN_INPUT ? 4 * frame : MIN_INPUT;
    c->in = allocate(1, c->in_size);
    c->out = allocate(options.depth, frame);
    memset(c->out, 0x5a, options.depth * frame); /* payloads that are no zeroes */
}

static uint64_t random_number(void)
{
    static uint64_t x = 88172645463325252ull; /* xorshift: the same offsets in each run */
    x ^= x << 13;
    x ^= x >> 7;
    return x ^= x << 17;
}

static uint64_t choose_offset(const struct connection *c)
{
    static uint64_t next;
    uint64_t blocks = c->size / options.block_size;
    uint64_t block = options.sequential ? next++ : random_number();
    return block % blocks * options.block_size;
}

static int is_write(void)
{
    if (options.reads == 0 || options.reads == 100)
        return options.reads == 0;
    return random_number() % 100 >= (uint64_t)options.reads;
}

static uint64_t stamp_at(uint64_t offset)
{
    return STAMP ^ offset;
}

void issue(struct connection *c, double now)
{
    if (c->out_begin < c->out_end)
        return;
    c->out_begin = c->out_end = 0;
    while (c->free_count) {
        int cookie = c->free_slots[--c->free_count];
        struct slot *slot = &c->slots[cookie];
        *slot = (struct slot){1, is_write() ? CMD_WRITE : CMD_READ, choose_offset(c), 0, now};
        struct request request = {htobe32(REQUEST_MAGIC), 0, htobe16(slot->type),
                                  htobe64(cookie), htobe64(slot->offset),
                                  htobe32(options.block_size)};
        memcpy(c->out + c->out_end, &request, sizeof request);
        c->out_end += sizeof request;
        if (slot->type != CMD_WRITE)
            continue;
        for (uint32_t at = 0; at < options.block_size; at += STAMP_UNIT) {
            uint64_t stamp = stamp_at(slot->offset + at);
            memcpy(c->out + c->out_end + at, &stamp, sizeof stamp);
        }
        c->out_end += options.block_size;
    }
}

void push(struct connection *c)
{
    while (c->out_begin < c->out_end) {
        ssize_t put = send(c->fd, c->out + c->out_begin, c->out_end - c->out_begin,
                           MSG_DONTWAIT | MSG_NOSIGNAL);
        if (put < 0 && errno == EAGAIN)
            return;
        if (put < 0)
            die("cannot send: %s", strerror(errno));
        c->out_begin += put;
    }
}

static struct slot *find_slot(struct connection *c, uint64_t cookie)
{
    cookie = be64toh(cookie);
    if (cookie >= (uint64_t)options.depth || !c->slots[cookie].busy)
        die("a reply to no request: cookie %llu", (unsigned long long)cookie);
    return &c->slots[cookie];
}

static void check_data(const struct slot *slot, uint64_t offset, const char *data, uint32_t length)
{
    if (offset < slot->offset || offset + length > slot->offset + options.block_size)
        die("data at offset %llu that was not asked for", (unsigned long long)offset);
    if (!options.verify)
        return;
    uint32_t at = (STAMP_UNIT - offset % STAMP_UNIT) % STAMP_UNIT;
    for (; at + sizeof(uint64_t) <= length; at += STAMP_UNIT) {
        uint64_t found, stamp = stamp_at(offset + at);
        memcpy(&found, data + at, sizeof found);
        if (found != stamp)
            die("wrong data at offset %llu", (unsigned long long)(offset + at));
    }
}

static void complete(struct connection *c, struct slot *slot, double now)
{
    if (slot->type == CMD_READ && slot->received != options.block_size)
        die("%u bytes of %u at offset %llu", slot->received, options.block_size,
            (unsigned long long)slot->offset);
    slot->busy = 0;
    c->free_slots[c->free_count++] = slot - c->slots;
    record(now - slot->sent_at);
}

static void fail(const struct slot *slot, uint32_t error)
{
    die("%s at offset %llu failed: error %u", slot->type == CMD_READ ? "read" : "write",
        (unsigned long long)slot->offset, be32toh(error));
}

/* Both take one reply from `have` bytes and return its length, or 0 where it is not all there. */
static size_t take_simple(struct connection *c, const char *data, size_t have, double now)
{
    struct simple_reply reply;
    if (have < sizeof reply)
        return 0;
    memcpy(&reply, data, sizeof reply);
    struct slot *slot = find_slot(c, reply.cookie);
    if (reply.error)
        fail(slot, reply.error);
    if (slot->type == CMD_READ && options.structured)
        die("a simple reply to a read, though structured ones were negotiated");
    size_t length = slot->type == CMD_READ ? options.block_size : 0;
    if (have < sizeof reply + length)
        return 0;
    if (length)
        check_data(slot, slot->offset, data + sizeof reply, length);
    slot->received = length;
    complete(c, slot, now);
    return sizeof reply + length;
}

static size_t take_chunk(struct connection *c, const char *data, size_t have, double now)
{
    struct chunk chunk;
    struct {
        uint64_t offset;
        uint32_t length;
    } PACKED body = {0};
    if (have < sizeof chunk)
        return 0;
    memcpy(&chunk, data, sizeof chunk);
    uint32_t length = be32toh(chunk.length);
    uint16_t type = be16toh(chunk.type);
    if (length > options.block_size + sizeof body)
        die("a chunk of %u bytes is longer than what was asked for", length);
    if (have < sizeof chunk + length)
        return 0;
    data += sizeof chunk;
    struct slot *slot = find_slot(c, chunk.cookie);
    memcpy(&body, data, length < sizeof body ? length : sizeof body);
    if (type == CHUNK_OFFSET_DATA && length > 8) {
        check_data(slot, be64toh(body.offset), data + 8, length - 8);
        slot->received += length - 8;
    } else if (type == CHUNK_OFFSET_HOLE && length == sizeof body && !options.verify) {
        slot->received += be32toh(body.length);
    } else if (type != CHUNK_NONE) {
        uint32_t error; /* or a type that was not asked for */
        memcpy(&error, &body, sizeof error);
        fail(slot, error);
    }
    if (be16toh(chunk.flags) & CHUNK_DONE)
        complete(c, slot, now);
    return sizeof chunk + length;
}

static size_t take_reply(struct connection *c, double now)
{
    const char *data = c->in + c->in_begin;
    size_t have = c->in_end - c->in_begin;
    uint32_t magic;
    if (have < sizeof magic)
        return 0;
    memcpy(&magic, data, sizeof magic);
    if (be32toh(magic) == SIMPLE_MAGIC)
        return take_simple(c, data, have, now);
    if (be32toh(magic) != STRUCTURED_MAGIC || !options.structured)
        die("no reply begins with %#x", be32toh(magic));
    return take_chunk(c, data, have, now);
}

double receive(struct connection *c, int flags)
{
    size_t taken, longest = sizeof(struct chunk) + 16 + options.block_size;
    if (c->in_begin == c->in_end) {
        c->in_begin = c->in_end = 0;
    } else if (c->in_size - c->in_begin < longest) {
        memmove(c->in, c->in + c->in_begin, c->in_end - c->in_begin);
        c->in_end -= c->in_begin;
        c->in_begin = 0;
    }
    ssize_t got = recv(c->fd, c->in + c->in_end, c->in_size - c->in_end, flags);
    double now = monotonic();
    if (got < 0 && errno == EAGAIN)
        return now;
    if (got <= 0)
        die("the server closed the connection");
    c->in_end += got;
    while ((taken = take_reply(c, now)))
        c->in_begin += taken;
    return now;
}

void close_connection(struct connection *c)
{
    struct request bye = {htobe32(REQUEST_MAGIC), 0, htobe16(CMD_DISC), 0, 0, 0};
    send_all(c->fd, &bye, sizeof bye);
    close(c->fd);
}
