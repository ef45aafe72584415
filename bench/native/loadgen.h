/* What loadgen's halves share: connection.c asks and checks replies, loadgen.c counts them. */
#ifndef LOADGEN_H
#define LOADGEN_H
#include <stddef.h>
#include <stdint.h>

struct options {
    const char *socket, *export;
    int reads; /* of 100 requests */
    int structured, sequential, verify;
    int depth, connections;
    uint32_t block_size;
    uint64_t size; /* bytes of the export that are used; 0 for all */
    long requests, warm_up;
    double seconds;
};
extern struct options options;

/* A request that may be in flight; its index is the cookie. */
struct slot {
    int busy;
    uint16_t type;
    uint64_t offset;
    uint32_t received; /* bytes of a read, which may come in several chunks */
    double sent_at;
};

struct connection {
    int fd;
    uint64_t size;
    struct slot *slots;
    int *free_slots, free_count;
    char *out; /* out[out_begin..out_end) is yet to be sent */
    char *in;  /* in[in_begin..in_end) is yet to be parsed */
    size_t out_begin, out_end, in_begin, in_end, in_size;
};

/* Connect to options.socket and negotiate; any failure ends the process, here and below. */
void open_connection(struct connection *c);

/* Put a request into each free slot, and all of them behind each other into the output. */
void issue(struct connection *c, double now);

/* Send as much of the output as the socket takes. */
void push(struct connection *c);

/* Receive once, with recv(2)'s flags, and take all replies that are complete; returns the time. */
double receive(struct connection *c, int flags);

/* Disconnect as the protocol has it. */
void close_connection(struct connection *c);

/* loadgen.c: counts a request that was answered so many seconds after it was sent. */
void record(double latency);

double monotonic(void);
void *allocate(size_t count, size_t size);
void die(const char *form, ...) __attribute__((format(printf, 1, 2), noreturn));

#endif
