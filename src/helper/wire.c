/*
 * helper/wire.c: datagrams of protocol.h over SEQPACKET sockets.  Touches the socket it is given,
 * and closes every descriptor of a message that is not in order.  libc only.
 */
#include "helper/wire.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

/* Room for the kernel's own limit on descriptors, so that none is lost and all can be closed. */
#define KERNEL_FDS 253u

typedef union {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(sizeof(int) * KERNEL_FDS)];
} ancillary_t;

/* Take the descriptors out of the ancillary data; those past the protocol's limit are closed.
 * False when there were more, or something else. */
static bool take_fds(struct msghdr *header, bk_wire_message_t *message)
{
    bool ok = (header->msg_flags & MSG_CTRUNC) == 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(header); c != NULL; c = CMSG_NXTHDR(header, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) {
            ok = false;
            continue;
        }
        size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
            if (message->fd_count < BK_WIRE_OPS) {
                message->fds[message->fd_count++] = fd;
            } else {
                close(fd);
                ok = false;
            }
        }
    }
    return ok;
}

bk_wire_got_t bk_wire_receive(int fd, bk_wire_message_t *message)
{
    ancillary_t ancillary;
    struct iovec parts[2] = {{&message->head, sizeof message->head},
                             {message->body, sizeof message->body}};
    struct msghdr header = {.msg_iov = parts,
                            .msg_iovlen = 2,
                            .msg_control = ancillary.bytes,
                            .msg_controllen = sizeof ancillary.bytes};
    ssize_t got;
    message->fd_count = 0;
    message->head.len = 0;
    /* A peer that closed with something unread is told once, before what it had said. */
    for (bool reset = false;; reset = true) {
        do
            got = recvmsg(fd, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        while (got < 0 && errno == EINTR);
        if (got >= 0 || errno != ECONNRESET || reset)
            break;
    }
    if (got < 0) {
        if (errno == EAGAIN)
            return BK_WIRE_EMPTY;
        message->head.len = 0;
        return BK_WIRE_END;
    }
    bool ok = take_fds(&header, message) && (header.msg_flags & MSG_TRUNC) == 0;
    if (got == 0 && message->fd_count == 0) {
        message->head.len = 0;
        errno = 0;
        return BK_WIRE_END;
    }
    if (!ok || (size_t)got < sizeof message->head || message->head.magic != BK_WIRE_MAGIC ||
        message->head.version != BK_WIRE_VERSION || message->head.len > BK_WIRE_BODY ||
        message->head.len != (size_t)got - sizeof message->head) {
        message->head.len = 0;
        bk_wire_drop(message);
        return BK_WIRE_BROKEN;
    }
    return BK_WIRE_OK;
}

int bk_wire_send(int fd, bk_wire_verb_t verb, uint32_t id, const void *body, size_t len,
                 const int *fds, unsigned fd_count)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int) * BK_WIRE_OPS)];
    } ancillary;
    char none = 0;
    struct iovec parts[2];
    struct msghdr header = {.msg_iov = parts, .msg_iovlen = len > 0 ? 2 : 1};
    if (len > BK_WIRE_BODY || fd_count > BK_WIRE_OPS)
        return EMSGSIZE;
    bk_wire_head_t head = {.magic = BK_WIRE_MAGIC,
                           .version = BK_WIRE_VERSION,
                           .verb = (uint16_t)verb,
                           .id = id,
                           .len = (uint32_t)len};
    parts[0] = (struct iovec){&head, sizeof head};
    /* iovec takes no const, although sending only reads. */
    memcpy(&parts[1].iov_base, &body, sizeof body);
    if (body == NULL)
        parts[1].iov_base = &none;
    parts[1].iov_len = len;
    if (fd_count > 0) {
        memset(&ancillary, 0, sizeof ancillary);
        header.msg_control = ancillary.bytes;
        header.msg_controllen = CMSG_SPACE(sizeof(int) * fd_count);
        struct cmsghdr *c = CMSG_FIRSTHDR(&header);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int) * fd_count);
        memcpy(CMSG_DATA(c), fds, sizeof(int) * fd_count);
    }
    ssize_t sent;
    do
        sent = sendmsg(fd, &header, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    return sent < 0 ? errno : 0;
}

int bk_wire_wait(int fd, short events, int ms)
{
    struct pollfd one = {.fd = fd, .events = events};
    int found = poll(&one, 1, ms);
    if (found < 0)
        return errno == EINTR ? 0 : -1;
    return found;
}

void bk_wire_drop(bk_wire_message_t *message)
{
    for (unsigned i = 0; i < message->fd_count; i++)
        if (message->fds[i] >= 0)
            close(message->fds[i]);
    message->fd_count = 0;
}

bool bk_wire_is_seqpacket(int fd)
{
    int domain = 0, type = 0;
    socklen_t domain_size = sizeof domain, type_size = sizeof type;
    return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &domain_size) == 0 &&
           getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &type_size) == 0 && domain == AF_UNIX &&
           type == SOCK_SEQPACKET;
}

/* --- bodies --- */

bk_wire_cur_t bk_wire_cur(const bk_wire_message_t *message)
{
    return (bk_wire_cur_t){.at = message->body, .left = message->head.len};
}

const char *bk_wire_bytes(bk_wire_cur_t *cur, size_t len)
{
    if (cur->failed || len > cur->left) {
        cur->failed = true;
        cur->left = 0;
        return NULL;
    }
    const char *at = (const char *)cur->at;
    cur->at += len;
    cur->left -= len;
    return at;
}

void bk_wire_get(bk_wire_cur_t *cur, void *out, size_t len)
{
    const char *at = bk_wire_bytes(cur, len);
    if (at != NULL)
        memcpy(out, at, len);
    else
        memset(out, 0, len);
}

bool bk_wire_is_name(const char *name, size_t len)
{
    if (len == 0 || len > BK_WIRE_NAME || memchr(name, '/', len) != NULL ||
        memchr(name, '\0', len) != NULL)
        return false;
    return !(name[0] == '.' && (len == 1 || (len == 2 && name[1] == '.')));
}

bool bk_wire_is_relative(const char *path, size_t len)
{
    if (len == 0 || len > BK_WIRE_PATH)
        return false;
    for (size_t start = 0; start <= len;) {
        const char *slash = memchr(path + start, '/', len - start);
        size_t end = slash != NULL ? (size_t)(slash - path) : len;
        if (!bk_wire_is_name(path + start, end - start))
            return false;
        start = end + 1;
    }
    return true;
}
