/*
 * helper/filter.c: the seccomp program, built from a list.  A call that is not on it fails with
 * EPERM and does not kill: the C library may try one more than we know, and can do without.  libc
 * only.
 */
#include "helper/filter.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined __x86_64__
#define MACHINE AUDIT_ARCH_X86_64
#elif defined __aarch64__
#define MACHINE AUDIT_ARCH_AARCH64
#endif

/* Sanitizers call what they like. */
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
#undef MACHINE
#endif
#if defined __has_feature
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#undef MACHINE
#endif
#endif

#ifdef MACHINE

static const uint16_t everyone[] = {
    /* the conversation */
    SYS_recvmsg, SYS_sendmsg, SYS_sendto, SYS_ppoll, SYS_ioctl, SYS_read, SYS_close,
#ifdef SYS_poll
    SYS_poll,
#endif
    /* the C library: memory, time, locks, the end */
    SYS_brk, SYS_mmap, SYS_munmap, SYS_mremap, SYS_madvise, SYS_futex, SYS_getrandom, SYS_getpid,
    SYS_gettid, SYS_getppid, SYS_clock_gettime, SYS_clock_nanosleep, SYS_nanosleep,
    SYS_restart_syscall, SYS_rt_sigreturn, SYS_rt_sigprocmask, SYS_rt_sigaction, SYS_exit,
    SYS_exit_group};

static const uint16_t finding[] = {
    SYS_openat2,    SYS_openat, SYS_fcntl,      SYS_fstat,
    SYS_newfstatat, SYS_statx,  SYS_readlinkat, SYS_getdents64,
#ifdef SYS_open
    SYS_open,
#endif
};

/* Attributes are read into, and come from, memory that has a descriptor. */
static const uint16_t looking[] = {SYS_dup,   SYS_getxattr, SYS_listxattr, SYS_memfd_create,
                                   SYS_write, SYS_pread64,  SYS_lseek};

static const uint16_t companions[] = {SYS_fchown, SYS_fchmod, SYS_unlinkat};

static const uint16_t placing[] = {
    SYS_fchownat,  SYS_fchmodat, SYS_utimensat, SYS_setxattr, SYS_removexattr,
    SYS_renameat2, SYS_linkat,   SYS_symlinkat, SYS_mkdirat,  SYS_syncfs,
#ifdef SYS_chmod
    SYS_chmod,
#endif
#ifdef SYS_renameat
    SYS_renameat,
#endif
};

/* fanotify's marks are set before. */
static const uint16_t watching[] = {SYS_inotify_add_watch, SYS_inotify_init1, SYS_inotify_rm_watch,
                                    SYS_name_to_handle_at, SYS_fstatfs};

#define CALLS(list) list, sizeof list / sizeof list[0]

static const struct {
    unsigned what; /* 0: always */
    const uint16_t *calls;
    size_t count;
} lists[] = {{0, CALLS(everyone)},
             {BK_FILTER_FIND, CALLS(finding)},
             {BK_FILTER_LOOK, CALLS(looking)},
             {BK_FILTER_COMPANION, CALLS(companions)},
             {BK_FILTER_PLACE, CALLS(placing)},
             {BK_FILTER_WATCH, CALLS(watching)}};

#define MOST                                                                                       \
    (2 *                                                                                           \
         (sizeof everyone + sizeof finding + sizeof looking + sizeof companions + sizeof placing + \
          sizeof watching) /                                                                       \
         sizeof everyone[0] +                                                                      \
     16)

typedef struct {
    struct sock_filter code[MOST];
    unsigned short len;
} program_t;

static void put(program_t *program, uint16_t code, uint32_t k, uint8_t yes, uint8_t no)
{
    program->code[program->len++] = (struct sock_filter){.code = code, .jt = yes, .jf = no, .k = k};
}

static void allow(program_t *program, uint32_t call)
{
    put(program, BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1);
    put(program, BPF_RET | BPF_K, SECCOMP_RET_ALLOW, 0, 0);
}

/* mknodat of FIFOs alone.  The low half of its third argument. */
static void allow_fifos(program_t *program)
{
    uint32_t mode = offsetof(struct seccomp_data, args) + 2 * sizeof(uint64_t);
    put(program, BPF_JMP | BPF_JEQ | BPF_K, SYS_mknodat, 0, 4);
    put(program, BPF_LD | BPF_W | BPF_ABS, mode, 0, 0);
    put(program, BPF_ALU | BPF_AND | BPF_K, S_IFMT, 0, 0);
    put(program, BPF_JMP | BPF_JEQ | BPF_K, S_IFIFO, 0, 1);
    put(program, BPF_RET | BPF_K, SECCOMP_RET_ALLOW, 0, 0);
}

bool bk_filter_works(void)
{
    uint32_t action = SECCOMP_RET_ERRNO;
    return syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0u, &action) == 0;
}

int bk_filter_enter(unsigned what)
{
    program_t program = {.len = 0};
    put(&program, BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch), 0, 0);
    put(&program, BPF_JMP | BPF_JEQ | BPF_K, MACHINE, 1, 0);
    put(&program, BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS, 0, 0);
    put(&program, BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr), 0, 0);
    /* x86-64's calls of 32-bit pointers have numbers from 2^30 on: none of them is on the list. */
    for (unsigned i = 0; i < sizeof lists / sizeof lists[0]; i++)
        for (size_t k = 0; (lists[i].what & ~what) == 0 && k < lists[i].count; k++)
            allow(&program, lists[i].calls[k]);
    if ((what & BK_FILTER_PLACE) != 0)
        allow_fifos(&program);
    put(&program, BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM, 0, 0);
    struct sock_fprog filter = {.len = program.len, .filter = program.code};
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter, 0, 0) == 0 ? 0 : -1;
}

#else

bool bk_filter_works(void)
{
    return false;
}

int bk_filter_enter(unsigned what)
{
    (void)what;
    errno = ENOSYS;
    return -1;
}

#endif
