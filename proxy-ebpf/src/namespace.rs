//! Which network namespace the daemon is in, for kernels whose sockets do not tell (`SO_NETNS_COOKIE`, 5.14).

use aya_ebpf::{
    EbpfContext as _, helpers::generated::bpf_get_netns_cookie, programs::SockAddrContext,
};
use proxy_common::relay;

use crate::{
    caller::sk_of,
    connect::PROCEED,
    maps::{RELAY, is_ours},
};

/// The daemon connects a socket that it has marked as its own. It is not the only one in its cgroup; nobody else is affected.
#[inline(always)]
pub fn tell(ctx: &SockAddrContext) -> i32 {
    if is_ours(sk_of(ctx))
        && let Some(relay) = RELAY.get_ptr_mut(relay::OWN)
    {
        // SAFETY: a plain helper call, and an element of an array, which is always there. The hooks that read it are not
        // attached yet.
        unsafe { (*relay).netns_cookie = bpf_get_netns_cookie(ctx.as_ptr()) };
    }
    PROCEED
}
