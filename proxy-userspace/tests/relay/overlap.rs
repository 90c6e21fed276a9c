//! A retransmission brings bytes again in front of new ones. They arrive once, and only because the program cuts them off.

use proxy_userspace::{close::CloseReason, intercept::Overlap, relay::Promotion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    payload::{Payload, expect_end},
    rig::{Rig, in_time, promotion, promotion_with, resend},
};

/// Bytes before the retransmission: beyond the first window, so that the kernel has moved some and passed some.
const BEFORE: usize = 200_000;
const TRANSFER: Payload = Payload::new(1, 1_000_000);

/// Relays the transfer, in which `old` bytes come again together with `new` ones: what arrives, and the repairs.
async fn relayed(promotion: Promotion, old: usize, new: usize) -> (Vec<u8>, u32) {
    let mut rig = Rig::in_kernel(promotion).await;
    let mut arrived = vec![0; BEFORE];
    let first = TRANSFER.bytes(0, BEFORE);
    tokio::try_join!(
        rig.app.write_all(&first),
        rig.server.read_exact(&mut arrived)
    )
    .unwrap();
    let next = TRANSFER.bytes(BEFORE as u64, new);
    let mut app = resend(rig.app, &first[BEFORE - old..], &next).await;
    let last = TRANSFER.bytes((BEFORE + new) as u64, 1_000_000 - BEFORE - new);
    let sending = async {
        app.write_all(&last).await.unwrap();
        app.shutdown().await.unwrap();
    };
    let receiving = async {
        rig.server.read_to_end(&mut arrived).await.unwrap();
        rig.server.shutdown().await.unwrap();
    };
    tokio::join!(sending, receiving);
    expect_end(&mut app).await;
    assert_eq!(rig.ended.await.unwrap().reason, CloseReason::Done);
    (arrived, rig.progress.repairs())
}

#[tokio::test]
async fn it_arrives_once() {
    let Some(promotion) = promotion() else {
        return;
    };
    // Around what one cut can take away, and far beyond it.
    for old in [1, 4094, 4095, 4096, 8190, 8191, 30_000] {
        for new in [1, 1000, 20_000] {
            let (arrived, repairs) = in_time(relayed(promotion.clone(), old, new)).await;
            assert!(
                arrived == TRANSFER.bytes(0, 1_000_000),
                "{old} old bytes, {new} new ones: {} arrived",
                arrived.len()
            );
            assert_eq!(repairs, 1, "{old} old bytes, {new} new ones");
        }
    }
}

/// What the kernel does by itself (`tcp_read_skb()`), without which nothing here would prove anything.
#[tokio::test]
async fn it_arrives_twice_where_nothing_is_cut_off() {
    let Some(promotion) = promotion_with(Overlap::Deliver) else {
        return;
    };
    let (arrived, repairs) = in_time(relayed(promotion, 5000, 1000)).await;
    let mut doubled = TRANSFER.bytes(0, BEFORE);
    doubled.extend(TRANSFER.bytes((BEFORE - 5000) as u64, 1_000_000 - BEFORE + 5000));
    assert!(arrived == doubled, "{} bytes arrived", arrived.len());
    assert_eq!(repairs, 0);
}
