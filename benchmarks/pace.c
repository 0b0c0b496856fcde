/* A load generator whose latencies count from when a request was meant to be sent, not from when it could be.
 *
 *     pace HOST:PORT|/PATH CONNECTIONS RATE SECONDS REQUESTS LATENCIES
 *
 * REQUESTS are whole HTTP requests, each after its length (32 bits, as this machine writes them), asked in turn.
 *
 * RATE > 0, open loop: request i is meant for t0 + i / RATE. It takes an idle connection; while there is none it waits,
 * and the wait is part of its latency, as it would be of a caller's: a server that stalls pays for everybody who would
 * have come meanwhile ("coordinated omission" is what leaving that out is called). The generator spins: it never sleeps,
 * so it is never woken late. What it is late itself, with an idle connection at hand, is reported as `late_ns`.
 *
 * RATE = 0, closed loop: each connection asks again once it has its answer, and latency counts from the sending. The
 * generator blocks while it waits, as a caller does.
 *
 * LATENCIES gets one 64 bit number of ns for each request in the order in which they were meant; of those that had no
 * answer two seconds after the end, what they had waited by then. Standard output gets one JSON object. Exit code 1: an answer was not a 200
 * with a Content-Length, or a connection broke.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define NS 1000000000LL
#define BUFFER (256 * 1024)
#define GRACE_NS (2 * NS)

struct request {
    const char *text;
    uint32_t length;
};

struct connection {
    int fd;
    int64_t asked;    /* the number of the request under way; -1: idle */
    int64_t since_ns; /* what its latency counts from */
    size_t have;      /* bytes of the answer's head in the buffer */
    int64_t missing;  /* bytes of its body still to come; -1: the head is not whole */
    char *buffer;
};

static struct request *requests;
static size_t count;
static int64_t *latencies;
static int64_t room, answered, body_bytes;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * NS + t.tv_nsec;
}

static void fail(const char *what) {
    fprintf(stderr, "pace: %s%s%s\n", what, errno ? ": " : "", errno ? strerror(errno) : "");
    exit(1);
}

static void read_requests(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) fail(path);
    uint32_t length;
    while (fread(&length, sizeof length, 1, file) == 1) {
        char *text = malloc(length);
        if (!text || fread(text, 1, length, file) != length) fail("the file of requests is cut");
        requests = realloc(requests, (count + 1) * sizeof *requests);
        if (!requests) fail("memory");
        requests[count++] = (struct request){text, length};
    }
    fclose(file);
    errno = 0;
    if (!count) fail("no requests");
}

static int open_connection(const char *where) {
    int fd, one = 1;
    if (where[0] == '/') {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        strncpy(address.sun_path, where, sizeof address.sun_path - 1);
        fd = socket(AF_UNIX, SOCK_STREAM, 0);
        if (fd < 0 || connect(fd, (void *)&address, sizeof address)) fail(where);
    } else {
        char host[64] = "";
        const char *colon = strchr(where, ':');
        if (!colon || (size_t)(colon - where) >= sizeof host) fail("HOST:PORT or /PATH");
        memcpy(host, where, colon - where);
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(colon + 1))};
        if (inet_pton(AF_INET, host, &address.sin_addr) != 1) fail("HOST is an IPv4 address");
        fd = socket(AF_INET, SOCK_STREAM, 0);
        if (fd < 0 || connect(fd, (void *)&address, sizeof address)) fail(where);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    }
    fcntl(fd, F_SETFL, O_NONBLOCK);
    return fd;
}

static void ask(struct connection *c, int64_t number, int64_t since_ns) {
    const struct request *r = &requests[number % count];
    c->asked = number;
    c->since_ns = since_ns;
    c->have = 0;
    c->missing = -1;
    /* One request fits into an empty socket buffer, which is what an idle connection has. */
    if (write(c->fd, r->text, r->length) != (ssize_t)r->length) fail("a request could not be sent whole");
}

/* The length of the body that the head announces; -1 while the head is not whole. */
static int64_t read_head(struct connection *c) {
    c->buffer[c->have] = 0;
    char *end = strstr(c->buffer, "\r\n\r\n");
    if (!end) return -1;
    errno = 0;
    if (strncmp(c->buffer, "HTTP/1.1 200 ", 13)) {
        *strchr(c->buffer, '\r') = 0;
        fail(c->buffer);
    }
    char *field = strcasestr(c->buffer, "\r\ncontent-length:");
    if (!field || field > end) fail("an answer without Content-Length");
    int64_t length = atoll(field + 17), begun = c->buffer + c->have - (end + 4);
    if (begun > length) fail("more came than was asked for");
    body_bytes += length;
    return length - begun;
}

/* Reads what is there; whether the answer is complete. */
static int receive(struct connection *c) {
    for (;;) {
        size_t at = c->missing < 0 ? c->have : 0;
        ssize_t n = read(c->fd, c->buffer + at, BUFFER - 1 - at);
        if (n < 0 && errno == EAGAIN) return 0;
        if (n <= 0) fail("the server closed a connection");
        if (c->asked < 0) fail("an answer to nothing");
        if (c->missing < 0) {
            c->have += n;
            c->missing = read_head(c);
        } else {
            c->missing -= n;
        }
        if (c->missing == 0) return 1;
    }
}

static void note(const struct connection *c) {
    if (c->asked < room) latencies[c->asked] = now_ns() - c->since_ns;
    answered++;
}

int main(int argc, char **argv) {
    if (argc != 7) fail("HOST:PORT|/PATH CONNECTIONS RATE SECONDS REQUESTS LATENCIES");
    int connections = atoi(argv[2]);
    double rate = atof(argv[3]), seconds = atof(argv[4]);
    read_requests(argv[5]);
    /* A closed loop does not know how many it will be: a million a second is more than one core can ask. */
    int64_t meant = rate > 0 ? (int64_t)(rate * seconds) : 0;
    room = rate > 0 ? meant : (int64_t)(seconds * 1000000);
    latencies = malloc(room * sizeof *latencies);
    struct connection *all = calloc(connections, sizeof *all), **idle = calloc(connections, sizeof *idle);
    struct epoll_event *events = calloc(connections, sizeof *events);
    if (!latencies || !all || !idle || !events) fail("memory");
    /* Touched beforehand: a page fault is no latency of the server's. */
    for (int64_t i = 0; i < room; i++) latencies[i] = -1;
    int poll = epoll_create1(0), idles = 0;
    for (int i = 0; i < connections; i++) {
        all[i] = (struct connection){.fd = open_connection(argv[1]), .asked = -1, .buffer = malloc(BUFFER)};
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &all[i]};
        if (!all[i].buffer || epoll_ctl(poll, EPOLL_CTL_ADD, all[i].fd, &event)) fail("epoll");
        idle[idles++] = &all[i];
    }
    int64_t t0 = now_ns(), end = t0 + (int64_t)(seconds * NS), next = 0, late_ns = 0;
    for (;;) {
        int64_t now = now_ns();
        if (rate > 0) {
            while (next < meant) {
                int64_t due = t0 + (int64_t)(next * (NS / rate));
                if (due > now || !idles) break;
                /* With a connection free all along, being late is the generator's own doing. */
                if (idles == connections && now - due > late_ns) late_ns = now - due;
                ask(idle[--idles], next++, due);
                now = now_ns();
            }
            if ((next == meant && idles == connections) || now > end + GRACE_NS) break;
        } else {
            while (idles && now < end) {
                now = now_ns();
                ask(idle[--idles], next++, now);
            }
            if ((now >= end && idles == connections) || now > end + GRACE_NS) break;
        }
        int n = epoll_wait(poll, events, connections, rate > 0 ? 0 : 100);
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            if (!receive(c)) continue;
            note(c);
            c->asked = -1;
            idle[idles++] = c;
        }
    }
    int64_t now = now_ns();
    for (int64_t i = 0; rate > 0 && i < meant; i++)
        if (latencies[i] < 0) latencies[i] = now - (t0 + (int64_t)(i * (NS / rate)));
    for (int i = 0; i < connections; i++)
        if (all[i].asked >= 0 && all[i].asked < room) latencies[all[i].asked] = now - all[i].since_ns;
    int64_t asked = rate > 0 ? meant : (next < room ? next : room);
    FILE *file = fopen(argv[6], "wb");
    if (!file || fwrite(latencies, sizeof *latencies, asked, file) != (size_t)asked || fclose(file)) fail(argv[6]);
    printf("{\"t0_ns\": %lld, \"meant\": %lld, \"asked\": %lld, \"answered\": %lld, \"late_ns\": %lld, "
           "\"body_bytes\": %lld, \"seconds\": %.6f}\n",
           (long long)t0, (long long)(rate > 0 ? meant : next), (long long)next, (long long)answered,
           (long long)late_ns, (long long)body_bytes, (double)(now - t0) / NS);
    return 0;
}
