/* A closed-loop load generator for NBD servers.
 *
 *     loadgen [OPTION...] SOCKET
 *
 * Keeps a fixed number of requests in flight on each of its connections to a Unix socket.  Prints a
 * line of JSON: the requests that were measured, the seconds they took, the CPU seconds of the
 * server and of itself meanwhile, and quantiles of the time from request to reply, in microseconds.
 *
 * It is one thread, and does less per request than any server: fio, which is built for devices a
 * hundred times slower, needs more CPU time per request than the fastest servers here, so that it
 * measures itself.  All that one recv(2) brings is answered by one send(2) of new requests.
 *
 * Every reply is checked: magic, cookie, error, length, and with --verify what was read, by a stamp
 * that --op write leaves in each 4 KiB.  Measuring begins when the warm-up has been answered, and
 * ends while the depth is still full: neither a cold cache nor a draining queue is part of it.
 */
#define _GNU_SOURCE
#include "loadgen.h"
#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum { MAX_CONNECTIONS = 64, MAX_PIDS = 64 };

struct options options = {
    .export = "",
    .reads = 100,
    .depth = 1,
    .connections = 1,
    .block_size = 4096,
    .requests = 10000,
    .seconds = 60,
};

/* The processes that are the server. */
static clockid_t cpu_clocks[MAX_PIDS];
static int cpu_clock_count;

static struct {
    enum { WARMING_UP, MEASURING, FINISHED } state;
    long done;     /* requests since the start */
    long measured; /* those of them that count */
    double begin, end, server, client;
    float *latencies; /* microseconds */
    long latency_count;
} run;

void die(const char *form, ...)
{
    va_list arguments;
    va_start(arguments, form);
    fprintf(stderr, "loadgen: ");
    vfprintf(stderr, form, arguments);
    fprintf(stderr, "\n");
    exit(1);
}

void *allocate(size_t count, size_t size)
{
    void *found = calloc(count, size);
    if (!found)
        die("out of memory");
    return found;
}

static double seconds_of(clockid_t clock)
{
    struct timespec now;
    if (clock_gettime(clock, &now))
        die("the server has ended");
    return now.tv_sec + now.tv_nsec / 1e9;
}

double monotonic(void)
{
    return seconds_of(CLOCK_MONOTONIC);
}

static double server_seconds(void)
{
    double sum = 0;
    for (int i = 0; i < cpu_clock_count; i++)
        sum += seconds_of(cpu_clocks[i]);
    return sum;
}

void record(double latency)
{
    run.done++;
    if (run.state == MEASURING && run.latency_count < options.requests)
        run.latencies[run.latency_count++] = latency * 1e6;
}

static void start(double now)
{
    run.state = MEASURING;
    run.measured = -run.done;
    run.begin = now;
    run.server = -server_seconds();
    run.client = -seconds_of(CLOCK_PROCESS_CPUTIME_ID);
}

static void finish(double now)
{
    run.state = FINISHED;
    run.measured += run.done;
    run.end = now;
    run.server += server_seconds();
    run.client += seconds_of(CLOCK_PROCESS_CPUTIME_ID);
}

static void advance(double now)
{
    if (run.state == WARMING_UP && run.done >= options.warm_up)
        start(now);
    else if (run.state == MEASURING && (run.measured + run.done >= options.requests
                                        || now - run.begin >= options.seconds))
        finish(now);
}

/* Whether anything is still in flight. */
static int is_busy(const struct connection *connections)
{
    for (int i = 0; i < options.connections; i++)
        if (connections[i].free_count < options.depth)
            return 1;
    return 0;
}

static void drive(struct connection *connections)
{
    struct pollfd polled[MAX_CONNECTIONS];
    double now = monotonic();
    for (advance(now); run.state != FINISHED || is_busy(connections); advance(now)) {
        for (int i = 0; i < options.connections; i++) {
            struct connection *c = &connections[i];
            if (run.state != FINISHED)
                issue(c, now);
            push(c);
            int unsent = c->out_begin < c->out_end;
            polled[i] = (struct pollfd){c->fd, POLLIN | (unsent ? POLLOUT : 0), 0};
        }
        if (options.connections == 1 && !(polled[0].events & POLLOUT)) {
            now = receive(connections, 0); /* one system call less than with poll(2) */
            continue;
        }
        if (poll(polled, options.connections, -1) < 0)
            die("poll: %s", strerror(errno));
        now = monotonic();
        for (int i = 0; i < options.connections; i++)
            if (polled[i].revents & ~POLLOUT)
                now = receive(&connections[i], MSG_DONTWAIT);
    }
}

static int by_size(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static double quantile(double part)
{
    long last = run.latency_count - 1;
    return last < 0 ? 0 : run.latencies[(long)(part * last)];
}

static void report(void)
{
    qsort(run.latencies, run.latency_count, sizeof *run.latencies, by_size);
    printf("{\"requests\": %ld, \"seconds\": %.6f, \"server_cpu\": %.6f, \"client_cpu\": %.6f, "
           "\"p50\": %.1f, \"p99\": %.1f}\n",
           run.measured, run.end - run.begin, run.server, run.client, quantile(0.5),
           quantile(0.99));
}

static const char USAGE[] =
    "usage: loadgen [OPTION...] SOCKET\n"
    "  --op read|write|mixed  what is asked for; mixed is half and half (read)\n"
    "  --block-size BYTES     of each request (4096)\n"
    "  --depth N              requests in flight on each connection (1)\n"
    "  --connections N        (1)\n"
    "  --requests N           to be measured, of all connections together (10000)\n"
    "  --warm-up N            requests before those (0)\n"
    "  --seconds N            after so many measuring ends earlier (60)\n"
    "  --size BYTES           use only so much of the export (all)\n"
    "  --sequential           offsets one after the other, not at random\n"
    "  --structured           negotiate structured replies\n"
    "  --verify               check what is read; it has to have been written by loadgen\n"
    "  --export NAME          (the default export)\n"
    "  --pid PID              a process whose CPU time counts as the server's; may be repeated\n";

static long number(const char *text, long least, long most)
{
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (errno || *end || end == text || value < least || value > most)
        die("%s is no number from %ld to %ld", text, least, most);
    return value;
}

static int share_of_reads(const char *op)
{
    if (!strcmp(op, "read"))
        return 100;
    if (!strcmp(op, "mixed"))
        return 50;
    if (strcmp(op, "write"))
        die("--op is read, write or mixed, not %s", op);
    return 0;
}

static void add_pid(const char *text)
{
    if (cpu_clock_count == MAX_PIDS)
        die("at most %d processes", MAX_PIDS);
    if (clock_getcpuclockid(number(text, 1, 1 << 30), &cpu_clocks[cpu_clock_count++]))
        die("there is no process %s", text);
}

static void parse(int argc, char **argv)
{
    static const struct option known[] = {
        {"op", 1, 0, 'o'},          {"block-size", 1, 0, 'b'}, {"depth", 1, 0, 'd'},
        {"connections", 1, 0, 'c'}, {"requests", 1, 0, 'n'},   {"warm-up", 1, 0, 'w'},
        {"seconds", 1, 0, 's'},     {"size", 1, 0, 'z'},       {"sequential", 0, 0, 'q'},
        {"structured", 0, 0, 't'},  {"verify", 0, 0, 'v'},     {"export", 1, 0, 'e'},
        {"pid", 1, 0, 'p'},         {0},
    };
    for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        switch (c) {
        case 'o': options.reads = share_of_reads(optarg); break;
        case 'b': options.block_size = number(optarg, 512, 32 << 20); break;
        case 'd': options.depth = number(optarg, 1, 4096); break;
        case 'c': options.connections = number(optarg, 1, MAX_CONNECTIONS); break;
        case 'n': options.requests = number(optarg, 1, 100000000); break;
        case 'w': options.warm_up = number(optarg, 0, 100000000); break;
        case 's': options.seconds = number(optarg, 1, 86400); break;
        case 'z': options.size = number(optarg, 512, INT64_MAX); break;
        case 'q': options.sequential = 1; break;
        case 't': options.structured = 1; break;
        case 'v': options.verify = 1; break;
        case 'e': options.export = optarg; break;
        case 'p': add_pid(optarg); break;
        default: fputs(USAGE, stderr); exit(2);
        }
    }
    if (optind != argc - 1) {
        fputs(USAGE, stderr);
        exit(2);
    }
    options.socket = argv[optind];
}

int main(int argc, char **argv)
{
    static struct connection connections[MAX_CONNECTIONS];
    parse(argc, argv);
    run.latencies = allocate(options.requests, sizeof *run.latencies);
    for (int i = 0; i < options.connections; i++)
        open_connection(&connections[i]);
    drive(connections);
    for (int i = 0; i < options.connections; i++)
        close_connection(&connections[i]);
    report();
    return 0;
}
