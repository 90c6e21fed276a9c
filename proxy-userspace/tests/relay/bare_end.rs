//! The end of a stream that comes without a byte is nothing to be moved: to the kernel's worker it would be a send of nothing, which
//! counts as a broken pipe of the socket (`sk_psock_backlog()` in `net/core/skmsg.c`), whose connection would be reset.

use std::time::Duration;

use proxy_userspace::relay::Pair;
use tokio::{io::AsyncWriteExt, time::sleep};

use crate::{
    payload::{expect_end, expect_text},
    rig::{acknowledged, connected, in_time, promotion},
};

/// The worker has had its turn.
const TURN: Duration = Duration::from_millis(30);

#[tokio::test]
async fn it_is_no_error_of_the_target() {
    let Some(promotion) = promotion() else {
        return;
    };
    in_time(async {
        for is_first in [false, true] {
            let (mut app, mut downstream) = connected(None).await;
            let (upstream, mut server) = connected(None).await;
            let pair = promotion.accelerator.admit(&downstream, &upstream);
            let Pair { up, .. } = pair.unwrap();
            up.grant(u64::MAX, u64::MAX);
            up.resume(0);
            if !is_first {
                app.write_all(b"bytes").await.unwrap();
                expect_text(&mut server, b"bytes").await;
                acknowledged(&app).await;
            }
            app.shutdown().await.unwrap();
            expect_end(&mut downstream).await;
            sleep(TURN).await;
            assert!(upstream.take_error().unwrap().is_none());
            // Nor does it keep anything else from being sent.
            upstream.try_write(b"more").unwrap();
            expect_text(&mut server, b"more").await;
        }
    })
    .await;
}
