//! The tests that `cargo xtask test --kernels` runs on other kernels, in one program: it is all that a guest has to unpack, and
//! has what all of them share once. All but those of `guests` are tests of the running kernel, and none of them is run here.

#[path = "tests/containers.rs"]
mod containers;
#[path = "tests/crash.rs"]
mod crash;
#[path = "tests/exec/main.rs"]
mod exec;
#[path = "tests/executables.rs"]
mod executables;
#[path = "tests/gateway.rs"]
mod gateway;
#[path = "tests/gateway_crash.rs"]
mod gateway_crash;
#[path = "tests/gateway_filters.rs"]
mod gateway_filters;
#[path = "tests/gateway_rest.rs"]
mod gateway_rest;
#[path = "tests/gateway_source.rs"]
mod gateway_source;
#[path = "tests/intercept.rs"]
mod intercept;
#[path = "tests/isolation.rs"]
mod isolation;
#[path = "tests/keep_source/main.rs"]
mod keep_source;
#[path = "guests/ktls.rs"]
mod ktls;
#[path = "tests/needs.rs"]
mod needs;
#[path = "tests/paths.rs"]
mod paths;
#[path = "tests/processes.rs"]
mod processes;
#[path = "tests/reverse.rs"]
mod reverse;
#[path = "tests/reverse_crash.rs"]
mod reverse_crash;
#[path = "tests/reverse_steer.rs"]
mod reverse_steer;
#[path = "tests/rewrite/main.rs"]
mod rewrite;
#[path = "tests/router.rs"]
mod router;
#[path = "tests/sidecar/main.rs"]
mod sidecar;
#[path = "tests/strangers.rs"]
mod strangers;
#[path = "tests/truth.rs"]
mod truth;
#[path = "tests/unreachable.rs"]
mod unreachable;
#[path = "guests/vlan.rs"]
mod vlan;
#[path = "tests/watch/main.rs"]
mod watch;
