//! WebSockets: after a 101 on both sides, bytes both ways and nothing else.

use std::sync::Arc;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::serve::Connection;

/// Joins the two sides of a switched connection, once both are free. Nothing bounds a tunnel but its ends and the end
/// of the drain; it keeps its place among the connections.
pub(super) fn splice(client_side: OnUpgrade, upstream_side: OnUpgrade, connection: &Arc<Connection>) {
    let connection = Arc::clone(connection);
    let server = Arc::clone(&connection.server);
    // For the client's socket, the request goes on.
    let open = connection.activity.open();
    server.tasks.spawn(async move {
        let (_counted, _open) = (Counted::new(), open);
        let joined = async {
            let (client, upstream) = tokio::try_join!(client_side, upstream_side)?;
            let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
            // How a tunnel ends is its ends' business.
            let _ = tokio::io::copy_bidirectional(&mut client, &mut upstream).await;
            Ok::<(), hyper::Error>(())
        };
        tokio::select! {
            () = connection.server.cut.cancelled() => connection.server.count_cut_tunnel(),
            joined = joined => {
                if let Err(error) = joined {
                    tracing::debug!(%error, "a tunnel was not opened");
                }
            }
        }
    });
}

/// One open tunnel in the metric `onceward_tunnels`.
struct Counted;

impl Counted {
    fn new() -> Self {
        metrics::gauge!("onceward_tunnels").increment(1.0);
        Self
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        metrics::gauge!("onceward_tunnels").decrement(1.0);
    }
}
