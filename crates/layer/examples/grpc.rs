//! A tonic server whose calls take effect once: the key is metadata, the outcome is `grpc-status`.
//!
//! ```sh
//! cargo run --example grpc
//! # it calls itself as any tonic client would: the same call twice, then another one under the same key
//! ```

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use onceward::{
    Engine, Layer, Limits, Route, Routes, Secret,
    store::embedded::{Embedded, Options},
};
use tonic::{
    Request, Response, Status,
    codegen::tokio_stream,
    metadata::MetadataValue,
    transport::{Server, server::TcpIncoming},
};

use payments::{Charge, ChargeRequest, payments_client::PaymentsClient, payments_server::PaymentsServer};

/// What `tonic-prost-build` makes of `payments.proto`.
#[expect(clippy::allow_attributes, unreachable_pub, unused_qualifications, reason = "generated")]
mod payments {
    include!("payments/payments.rs");
}

#[derive(Default)]
struct Payments {
    charges: AtomicU64,
}

#[tonic::async_trait]
impl payments::payments_server::Payments for Payments {
    async fn charge(&self, request: Request<ChargeRequest>) -> Result<Response<Charge>, Status> {
        let ChargeRequest { account, amount_cents } = request.into_inner();
        if account.is_empty() {
            // Recorded, as any answer that will not change: a repeat gets it again.
            return Err(Status::invalid_argument("an account is needed"));
        }
        let number = self.charges.fetch_add(1, Ordering::Relaxed) + 1;
        Ok(Response::new(Charge { id: format!("ch_{number}"), amount_cents }))
    }

    type ChargeAndFollowStream = tokio_stream::Iter<std::vec::IntoIter<Result<Charge, Status>>>;

    async fn charge_and_follow(
        &self,
        request: Request<ChargeRequest>,
    ) -> Result<Response<Self::ChargeAndFollowStream>, Status> {
        // Its whole row of answers is recorded, up to `recorded_body_bytes_max` of the route.
        let charge = self.charge(request).await?.into_inner();
        Ok(Response::new(tokio_stream::iter(vec![Ok(charge.clone()), Ok(charge)])))
    }

    async fn charge_all(&self, _: Request<tonic::Streaming<ChargeRequest>>) -> Result<Response<Charge>, Status> {
        // With a key it does not come to this: a protected call has one message.
        Err(Status::unimplemented("one charge at a time"))
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::temp_dir().join("onceward-example-grpc");
    let store = Embedded::open(&folder, Options::default()).await?;
    // In earnest: 32 random bytes of your own, kept as long as the store. Another secret makes every key new.
    let secret = Secret::from_bytes([7; 32]);
    let routes = Routes::new(vec![], Route::new("default"));
    let engine = Engine::new(Arc::new(store.clone()), secret, routes, Limits::default(), Engine::new_session());

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = Server::builder()
        .layer(Layer::new(engine.clone()))
        .add_service(PaymentsServer::new(Payments::default()))
        .serve_with_incoming_shutdown(TcpIncoming::from(listener), async { drop(stopped.await) });
    let server = tokio::spawn(server);

    let mut client = PaymentsClient::connect(format!("http://{address}")).await?;
    let key: MetadataValue<_> = format!("order-{}", std::process::id()).parse()?;
    for amount_cents in [4711, 4711, 8150] {
        let mut request = Request::new(ChargeRequest { account: "acc_1".into(), amount_cents });
        request.metadata_mut().insert("idempotency-key", key.clone());
        match client.charge(request).await {
            Ok(response) => {
                let replayed = response.metadata().contains_key("idempotent-replayed");
                println!("{amount_cents}: {:?}, replayed: {replayed}", response.get_ref());
            }
            Err(status) => println!("{amount_cents}: {:?}: {}", status.code(), status.message()),
        }
    }

    drop((client, stop));
    server.await??;
    // Executions outlive their clients: give them time to be recorded.
    engine.drain(Duration::from_secs(25)).await;
    store.close().await;
    Ok(())
}
