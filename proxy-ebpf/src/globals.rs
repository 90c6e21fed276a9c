//! Constants that the daemon sets before loading. They are read-only to the verifier, which therefore drops the
//! code that they switch off: helpers this kernel lacks are then never seen.

use aya_ebpf::Global;
use proxy_common::ABI_VERSION;

/// Version of the shared types this object was built with, for whoever reads the object.
#[used]
#[unsafe(no_mangle)]
static ABI: Global<u32> = Global::new(ABI_VERSION);

/// Whether `bpf_set_retval` may be called from `connect` hooks (kernel 6.1; probed).
#[unsafe(no_mangle)]
static HAS_SET_RETVAL: Global<u32> = Global::new(0);

/// Whether `bpf_skc_to_mptcp_sock` may be called from `connect` hooks (kernel 5.19, probed).
#[unsafe(no_mangle)]
static HAS_MPTCP: Global<u32> = Global::new(0);

/// Whether `sk_lookup` tells the interface (kernel 5.17, read from BTF).
#[unsafe(no_mangle)]
static HAS_INGRESS: Global<u32> = Global::new(0);

/// Whether the fast path may go on without asking for the daemon, since it ends with it.
#[unsafe(no_mangle)]
static ROUTER_ENDS: Global<u32> = Global::new(0);

/// Whether the offsets below are known, and reading kernel memory is allowed (needs BTF and `CAP_PERFMON`).
#[unsafe(no_mangle)]
static READS_TASKS: Global<u32> = Global::new(0);

/// Offset of `task_struct.mm`.
#[unsafe(no_mangle)]
static TASK_MM: Global<u32> = Global::new(0);
/// Offset of `task_struct.pid`.
#[unsafe(no_mangle)]
static TASK_PID: Global<u32> = Global::new(0);
/// Offset of `mm_struct.exe_file`.
#[unsafe(no_mangle)]
static MM_EXE_FILE: Global<u32> = Global::new(0);
/// Offset of `file.f_inode`.
#[unsafe(no_mangle)]
static FILE_INODE: Global<u32> = Global::new(0);
/// Offset of `inode.i_ino`.
#[unsafe(no_mangle)]
static INODE_INO: Global<u32> = Global::new(0);
/// Offset of `inode.i_sb`.
#[unsafe(no_mangle)]
static INODE_SB: Global<u32> = Global::new(0);
/// Offset of `super_block.s_dev`.
#[unsafe(no_mangle)]
static SB_DEV: Global<u32> = Global::new(0);

/// Whether the offsets below are known, so that apps' sockets may take the shortcut.
#[unsafe(no_mangle)]
static HAS_SHORTCUT: Global<u32> = Global::new(0);
/// Offset of `tcp_sock.write_seq`.
#[unsafe(no_mangle)]
static TCP_WRITE_SEQ: Global<u32> = Global::new(0);
/// Offset of `tcp_sock.copied_seq`.
#[unsafe(no_mangle)]
static TCP_COPIED_SEQ: Global<u32> = Global::new(0);
/// Offset of `inet_connection_sock.icsk_ulp_ops`.
#[unsafe(no_mangle)]
static ICSK_ULP_OPS: Global<u32> = Global::new(0);
/// Offset of `sock_common.skc_flags`, with which a `sock` begins.
#[unsafe(no_mangle)]
static SKC_FLAGS: Global<u32> = Global::new(0);
/// Bit of `SOCK_ZEROCOPY` in those flags.
#[unsafe(no_mangle)]
static SOCK_ZEROCOPY: Global<u32> = Global::new(0);
/// Offset of `sock.sk_wmem_queued`.
#[unsafe(no_mangle)]
static SK_WMEM_QUEUED: Global<u32> = Global::new(0);
/// Offset of `sock.sk_err`.
#[unsafe(no_mangle)]
static SK_ERR: Global<u32> = Global::new(0);
/// Offset of `sock.sk_sndbuf`.
#[unsafe(no_mangle)]
static SK_SNDBUF: Global<u32> = Global::new(0);
/// Offset of `sock.sk_socket`.
#[unsafe(no_mangle)]
static SK_SOCKET: Global<u32> = Global::new(0);
/// Offset of `socket.file`.
#[unsafe(no_mangle)]
static SOCKET_FILE: Global<u32> = Global::new(0);
/// Offset of `file.f_flags`.
#[unsafe(no_mangle)]
static FILE_FLAGS: Global<u32> = Global::new(0);
/// Offset of `sk_msg.sk_redir`.
#[unsafe(no_mangle)]
static MSG_SK_REDIR: Global<u32> = Global::new(0);
/// Offset of `sock_common.skc_cookie`.
#[unsafe(no_mangle)]
static SKC_COOKIE: Global<u32> = Global::new(0);
/// Offset of `sock.sk_backlog.rmem_alloc`.
#[unsafe(no_mangle)]
static SK_RMEM_ALLOC: Global<u32> = Global::new(0);
/// Offset of `sock.sk_rcvbuf`.
#[unsafe(no_mangle)]
static SK_RCVBUF: Global<u32> = Global::new(0);
/// Offset of `sock.sk_rcvlowat`.
#[unsafe(no_mangle)]
static SK_RCVLOWAT: Global<u32> = Global::new(0);
/// Offset of `sock.sk_user_data`.
#[unsafe(no_mangle)]
static SK_USER_DATA: Global<u32> = Global::new(0);
/// Offset of `sk_psock.ingress_skb.qlen`.
#[unsafe(no_mangle)]
static PSOCK_QUEUE: Global<u32> = Global::new(0);
/// Offset of `sk_psock.ingress_msg`.
#[unsafe(no_mangle)]
static PSOCK_MESSAGES: Global<u32> = Global::new(0);

/// Whether bytes that TCP brings again are delivered again. Only tests of the self-test set it; no configuration does.
#[unsafe(no_mangle)]
static REPEATS_BYTES: Global<u32> = Global::new(0);

/// Whether a refused `connect()` can be given its own error number.
#[inline(always)]
pub fn has_set_retval() -> bool {
    HAS_SET_RETVAL.load() != 0
}

/// Whether the MPTCP socket above a subflow can be found.
#[inline(always)]
pub fn has_mptcp() -> bool {
    HAS_MPTCP.load() != 0
}

/// Whether the interface is known that a connection arrives by.
#[inline(always)]
pub fn has_ingress_interface() -> bool {
    HAS_INGRESS.load() != 0
}

/// Whether the fast path is gone when the daemon is.
#[inline(always)]
pub fn routes_without_daemon() -> bool {
    ROUTER_ENDS.load() != 0
}

/// Whether tasks and files can be read.
#[inline(always)]
pub fn reads_tasks() -> bool {
    READS_TASKS.load() != 0
}

/// Whether apps' sockets may take the shortcut.
#[inline(always)]
pub fn has_shortcut() -> bool {
    HAS_SHORTCUT.load() != 0
}

/// Whether sockets can be read, which is what the shortcut needs, too.
#[inline(always)]
pub fn reads_sockets() -> bool {
    HAS_SHORTCUT.load() != 0
}

/// Whether bytes that TCP brings again are delivered again.
#[inline(always)]
pub fn repeats_bytes() -> bool {
    REPEATS_BYTES.load() != 0
}

/// `SOCK_ZEROCOPY` as a bit of a socket's flags.
#[inline(always)]
pub fn zerocopy_flag() -> u64 {
    1 << (SOCK_ZEROCOPY.load() & 63)
}

/// Byte offsets within the kernel's structs.
pub struct Offsets;

impl Offsets {
    #[inline(always)]
    pub fn task_mm() -> usize {
        TASK_MM.load() as usize
    }
    #[inline(always)]
    pub fn task_pid() -> usize {
        TASK_PID.load() as usize
    }
    #[inline(always)]
    pub fn mm_exe_file() -> usize {
        MM_EXE_FILE.load() as usize
    }
    #[inline(always)]
    pub fn file_inode() -> usize {
        FILE_INODE.load() as usize
    }
    #[inline(always)]
    pub fn inode_ino() -> usize {
        INODE_INO.load() as usize
    }
    #[inline(always)]
    pub fn inode_sb() -> usize {
        INODE_SB.load() as usize
    }
    #[inline(always)]
    pub fn sb_dev() -> usize {
        SB_DEV.load() as usize
    }
    #[inline(always)]
    pub fn tcp_write_seq() -> usize {
        TCP_WRITE_SEQ.load() as usize
    }
    #[inline(always)]
    pub fn tcp_copied_seq() -> usize {
        TCP_COPIED_SEQ.load() as usize
    }
    #[inline(always)]
    pub fn icsk_ulp_ops() -> usize {
        ICSK_ULP_OPS.load() as usize
    }
    #[inline(always)]
    pub fn skc_flags() -> usize {
        SKC_FLAGS.load() as usize
    }
    #[inline(always)]
    pub fn sk_wmem_queued() -> usize {
        SK_WMEM_QUEUED.load() as usize
    }
    #[inline(always)]
    pub fn sk_err() -> usize {
        SK_ERR.load() as usize
    }
    #[inline(always)]
    pub fn sk_sndbuf() -> usize {
        SK_SNDBUF.load() as usize
    }
    #[inline(always)]
    pub fn sk_socket() -> usize {
        SK_SOCKET.load() as usize
    }
    #[inline(always)]
    pub fn socket_file() -> usize {
        SOCKET_FILE.load() as usize
    }
    #[inline(always)]
    pub fn file_flags() -> usize {
        FILE_FLAGS.load() as usize
    }
    #[inline(always)]
    pub fn msg_sk_redir() -> usize {
        MSG_SK_REDIR.load() as usize
    }
    #[inline(always)]
    pub fn skc_cookie() -> usize {
        SKC_COOKIE.load() as usize
    }
    #[inline(always)]
    pub fn sk_rmem_alloc() -> usize {
        SK_RMEM_ALLOC.load() as usize
    }
    #[inline(always)]
    pub fn sk_rcvbuf() -> usize {
        SK_RCVBUF.load() as usize
    }
    #[inline(always)]
    pub fn sk_rcvlowat() -> usize {
        SK_RCVLOWAT.load() as usize
    }
    #[inline(always)]
    pub fn sk_user_data() -> usize {
        SK_USER_DATA.load() as usize
    }
    #[inline(always)]
    pub fn psock_queue() -> usize {
        PSOCK_QUEUE.load() as usize
    }
    #[inline(always)]
    pub fn psock_messages() -> usize {
        PSOCK_MESSAGES.load() as usize
    }
}
