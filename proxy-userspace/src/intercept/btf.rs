//! Where fields are in the running kernel's structs, read from its type information (BTF).
//!
//! Rust's eBPF compiler cannot emit CO-RE relocations, so the few offsets that the hooks need are looked up here and
//! written into the object as constants. The format is `Documentation/bpf/btf.rst` of the kernel; aya parses BTF
//! too but does not show struct members.

use std::{fs, io};

use thiserror::Error;

/// Byte offsets that the hooks need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offsets {
    /// `task_struct.mm`
    pub task_mm: u32,
    /// `task_struct.pid`
    pub task_pid: u32,
    /// `mm_struct.exe_file`
    pub mm_exe_file: u32,
    /// `file.f_inode`
    pub file_inode: u32,
    /// `inode.i_ino`
    pub inode_ino: u32,
    /// `inode.i_sb`
    pub inode_sb: u32,
    /// `super_block.s_dev`
    pub sb_dev: u32,
}

/// Where the shortcut finds what it decides by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketLayout {
    /// `tcp_sock.write_seq`
    pub tcp_write_seq: u32,
    /// `tcp_sock.copied_seq`
    pub tcp_copied_seq: u32,
    /// `inet_connection_sock.icsk_ulp_ops`
    pub icsk_ulp_ops: u32,
    /// `sock_common.skc_flags`, with which a `sock` begins
    pub skc_flags: u32,
    /// The bit of `SOCK_ZEROCOPY` in those flags
    pub sock_zerocopy: u32,
    /// `sock.sk_wmem_queued`
    pub sk_wmem_queued: u32,
    /// `sock.sk_err`
    pub sk_err: u32,
    /// `sock.sk_sndbuf`
    pub sk_sndbuf: u32,
    /// `sock.sk_socket`
    pub sk_socket: u32,
    /// `socket.file`
    pub socket_file: u32,
    /// `file.f_flags`
    pub file_flags: u32,
    /// `sk_msg.sk_redir`
    pub msg_sk_redir: u32,
}

/// What is read in an app's socket before a reply goes straight into its queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueLayout {
    /// `sock_common.skc_cookie`
    pub skc_cookie: u32,
    /// `sock.sk_backlog.rmem_alloc`, which the kernel calls `sk_rmem_alloc`
    pub sk_rmem_alloc: u32,
    /// `sock.sk_rcvbuf`
    pub sk_rcvbuf: u32,
    /// `sock.sk_rcvlowat`
    pub sk_rcvlowat: u32,
    /// `sock.sk_user_data`
    pub sk_user_data: u32,
    /// `sk_psock.ingress_skb.qlen`
    pub psock_queue: u32,
    /// `sk_psock.ingress_msg`
    pub psock_messages: u32,
}

/// Why an offset could not be found.
#[derive(Debug, Error)]
pub(super) enum BtfError {
    /// The file cannot be read.
    #[error("cannot read the type information")]
    Read(#[source] io::Error),
    /// The bytes are not BTF as documented.
    #[error("the type information is damaged at byte {0}")]
    Damaged(usize),
    /// A field is not where it was in every kernel known to us.
    #[error("the kernel has no {strukt}.{member}")]
    NoMember {
        /// Name of the struct.
        strukt: &'static str,
        /// Name of the member.
        member: &'static str,
    },
    /// A worker moves bytes in a way that shows nowhere.
    #[error("the kernel does not show whether a reply has arrived; Linux 6.4 does")]
    Worker,
}

const MAGIC: u16 = 0xeb9f;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;

/// The running kernel's type information.
const RUNNING: &str = "/sys/kernel/btf/vmlinux";

/// What [`Types`] reads: some megabytes.
pub(super) fn of_running_kernel() -> Result<Vec<u8>, BtfError> {
    fs::read(RUNNING).map_err(BtfError::Read)
}

impl Offsets {
    pub(super) fn find(types: &Types<'_>) -> Result<Self, BtfError> {
        let offset = |strukt, member| types.offset(strukt, member);
        Ok(Self {
            task_mm: offset("task_struct", "mm")?,
            task_pid: offset("task_struct", "pid")?,
            mm_exe_file: offset("mm_struct", "exe_file")?,
            file_inode: offset("file", "f_inode")?,
            inode_ino: offset("inode", "i_ino")?,
            inode_sb: offset("inode", "i_sb")?,
            sb_dev: offset("super_block", "s_dev")?,
        })
    }
}

impl SocketLayout {
    pub(super) fn find(types: &Types<'_>) -> Result<Self, BtfError> {
        let offset = |strukt, member| types.offset(strukt, member);
        Ok(Self {
            tcp_write_seq: offset("tcp_sock", "write_seq")?,
            tcp_copied_seq: offset("tcp_sock", "copied_seq")?,
            icsk_ulp_ops: offset("inet_connection_sock", "icsk_ulp_ops")?,
            skc_flags: offset("sock_common", "skc_flags")?,
            sock_zerocopy: types.enumerator("sock_flags", "SOCK_ZEROCOPY")?,
            sk_wmem_queued: offset("sock", "sk_wmem_queued")?,
            sk_err: offset("sock", "sk_err")?,
            sk_sndbuf: offset("sock", "sk_sndbuf")?,
            sk_socket: offset("sock", "sk_socket")?,
            socket_file: offset("socket", "file")?,
            file_flags: offset("file", "f_flags")?,
            msg_sk_redir: offset("sk_msg", "sk_redir")?,
        })
    }
}

impl QueueLayout {
    /// Before Linux 6.4 the worker takes an `skb` out of the one queue before it is in the other, and holds it in its
    /// `work_state` when it has to try again: where that is so nobody can tell whether a reply has arrived.
    pub(super) fn find(types: &Types<'_>) -> Result<Self, BtfError> {
        let offset = |strukt, member| types.offset(strukt, member);
        if types.member("sk_psock_work_state", "skb")?.is_some() {
            return Err(BtfError::Worker);
        }
        Ok(Self {
            skc_cookie: offset("sock_common", "skc_cookie")?,
            sk_rmem_alloc: offset("sock", "sk_backlog")?
                + types.inner("sock", "sk_backlog", "rmem_alloc")?,
            sk_rcvbuf: offset("sock", "sk_rcvbuf")?,
            sk_rcvlowat: offset("sock", "sk_rcvlowat")?,
            sk_user_data: offset("sock", "sk_user_data")?,
            psock_queue: offset("sk_psock", "ingress_skb")? + offset("sk_buff_head", "qlen")?,
            psock_messages: offset("sk_psock", "ingress_msg")?,
        })
    }
}

/// Whether `sk_lookup` programs are told the interface (Linux 5.17). What programs see is a struct of its own, which the kernel
/// describes, too.
pub(super) fn tells_ingress_interface(types: &Types<'_>) -> Result<bool, BtfError> {
    Ok(types.member("bpf_sk_lookup", "ingress_ifindex")?.is_some())
}

/// The type section, indexed by type id.
pub(super) struct Types<'a> {
    bytes: &'a [u8],
    strings: usize,
    /// Position of each type's header; id 0 is `void` and has none.
    headers: Vec<usize>,
    /// Those of structs and enumerations with a name, a tenth of all: what is looked up is among them.
    named: Vec<usize>,
}

impl<'a> Types<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, BtfError> {
        let header_len = word(bytes, 4)? as usize;
        if half(bytes, 0)? != MAGIC {
            return Err(BtfError::Damaged(0));
        }
        let mut at = header_len + word(bytes, 8)? as usize;
        let end = at + word(bytes, 12)? as usize;
        let strings = header_len + word(bytes, 16)? as usize;
        let (mut headers, mut named) = (vec![0], Vec::new());
        while at < end {
            let meta = word(bytes, at + 4)?;
            headers.push(at);
            if matches!(kind(meta), KIND_STRUCT | KIND_ENUM) && word(bytes, at)? != 0 {
                named.push(at);
            }
            at += 12 + body_len(meta).ok_or(BtfError::Damaged(at))?;
        }
        Ok(Self {
            bytes,
            strings,
            headers,
            named,
        })
    }

    /// Offset of a member that must be there, in bytes.
    fn offset(&self, strukt: &'static str, member: &'static str) -> Result<u32, BtfError> {
        self.member(strukt, member)?
            .ok_or(BtfError::NoMember { strukt, member })
    }

    /// Value of an enumerator that must be there.
    fn enumerator(&self, enumeration: &'static str, name: &'static str) -> Result<u32, BtfError> {
        for &header in &self.named {
            let meta = word(self.bytes, header + 4)?;
            if kind(meta) != KIND_ENUM
                || self.string(word(self.bytes, header)?) != enumeration.as_bytes()
            {
                continue;
            }
            for index in 0..(meta & 0xffff) as usize {
                let at = header + 12 + index * 8;
                if self.string(word(self.bytes, at)?) == name.as_bytes() {
                    return word(self.bytes, at + 4);
                }
            }
        }
        Err(BtfError::NoMember {
            strukt: enumeration,
            member: name,
        })
    }

    /// Offset of a member in bytes; anonymous structs and unions inside are searched too.
    fn member(&self, strukt: &str, member: &str) -> Result<Option<u32>, BtfError> {
        for &header in &self.named {
            if kind(word(self.bytes, header + 4)?) == KIND_STRUCT
                && self.string(word(self.bytes, header)?) == strukt.as_bytes()
                && let Some(bits) = self.member_of(header, member.as_bytes(), 0)?
            {
                return Ok(Some(bits / 8));
            }
        }
        Ok(None)
    }

    /// Offset of a member that must be there in the unnamed struct that another member is.
    fn inner(
        &self,
        strukt: &'static str,
        outer: &'static str,
        member: &'static str,
    ) -> Result<u32, BtfError> {
        let missing = BtfError::NoMember { strukt, member };
        for &header in &self.named {
            let meta = word(self.bytes, header + 4)?;
            if kind(meta) != KIND_STRUCT
                || self.string(word(self.bytes, header)?) != strukt.as_bytes()
            {
                continue;
            }
            for index in 0..(meta & 0xffff) as usize {
                let at = header + 12 + index * 12;
                if self.string(word(self.bytes, at)?) == outer.as_bytes()
                    && let Some(&inner) = self.headers.get(word(self.bytes, at + 4)? as usize)
                    && inner != 0
                    && let Some(bits) = self.member_of(inner, member.as_bytes(), 0)?
                {
                    return Ok(bits / 8);
                }
            }
        }
        Err(missing)
    }

    fn member_of(&self, header: usize, name: &[u8], depth: u32) -> Result<Option<u32>, BtfError> {
        const MAX_DEPTH: u32 = 8;
        let meta = word(self.bytes, header + 4)?;
        if depth > MAX_DEPTH || !matches!(kind(meta), KIND_STRUCT | KIND_UNION) {
            return Ok(None);
        }
        // With the flag the upper byte of the offset is the width of a bit field.
        let mask = if meta >> 31 == 1 {
            0x00ff_ffff
        } else {
            u32::MAX
        };
        for index in 0..(meta & 0xffff) as usize {
            let at = header + 12 + index * 12;
            let offset = word(self.bytes, at + 8)? & mask;
            let found = self.string(word(self.bytes, at)?);
            if found == name {
                return Ok(Some(offset));
            }
            if found.is_empty()
                && let Some(&inner) = self.headers.get(word(self.bytes, at + 4)? as usize)
                && inner != 0
                && let Some(bits) = self.member_of(inner, name, depth + 1)?
            {
                return Ok(Some(offset + bits));
            }
        }
        Ok(None)
    }

    fn string(&self, offset: u32) -> &'a [u8] {
        let rest = self
            .bytes
            .get(self.strings + offset as usize..)
            .unwrap_or_default();
        rest.split(|byte| *byte == 0).next().unwrap_or_default()
    }
}

const fn kind(meta: u32) -> u32 {
    meta >> 24 & 0x1f
}

/// Bytes after the 12-byte header of a type.
fn body_len(meta: u32) -> Option<usize> {
    let count = (meta & 0xffff) as usize;
    Some(match kind(meta) {
        // Pointer, forward, typedef, volatile, const, restrict, function, float, type tag.
        2 | 7 | 8 | 9 | 10 | 11 | 12 | 16 | 18 => 0,
        // Integer, variable, declaration tag.
        1 | 14 | 17 => 4,
        // Array.
        3 => 12,
        // Struct, union, data section, 64-bit enumeration.
        KIND_STRUCT | KIND_UNION | 15 | 19 => count * 12,
        // Enumeration, function prototype.
        KIND_ENUM | 13 => count * 8,
        _ => return None,
    })
}

fn word(bytes: &[u8], at: usize) -> Result<u32, BtfError> {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .map(|chunk| u32::from_ne_bytes(*chunk))
        .ok_or(BtfError::Damaged(at))
}

fn half(bytes: &[u8], at: usize) -> Result<u16, BtfError> {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .map(|chunk| u16::from_ne_bytes(*chunk))
        .ok_or(BtfError::Damaged(at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn finds_every_offset_of_this_kernel() {
        let bytes = of_running_kernel().unwrap();
        let types = Types::parse(&bytes).unwrap();
        let offsets = Offsets::find(&types).unwrap();
        assert!(offsets.task_mm > 0 && offsets.task_pid > 0);
        assert!(offsets.mm_exe_file > 0 && offsets.inode_ino > 0);
        let layout = SocketLayout::find(&types).unwrap();
        assert!(layout.tcp_write_seq > layout.sk_sndbuf && layout.icsk_ulp_ops > layout.sk_sndbuf);
        assert!(layout.sk_wmem_queued > layout.skc_flags && layout.msg_sk_redir > 0);
        assert!((1..64).contains(&layout.sock_zerocopy));
    }

    proptest! {
        #[test]
        fn damaged_bytes_are_an_error_not_a_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            if let Some(head) = bytes.first_chunk_mut() {
                *head = MAGIC.to_ne_bytes();
            }
            if let Ok(types) = Types::parse(&bytes) {
                let _ = types.member("task_struct", "mm");
            }
        }
    }
}
