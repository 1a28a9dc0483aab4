//! The tower layer.

use crate::{engine::Engine, service::Service};

/// Puts an [`Engine`] in front of a service. Clones share the engine.
#[derive(Clone, Debug)]
pub struct Layer {
    engine: Engine,
}

impl Layer {
    /// A layer over `engine`. Put it inside authentication, so that nobody unauthenticated is
    /// shown a recorded answer, and outside timeouts and compression.
    #[must_use]
    pub fn new(engine: Engine) -> Self {
        Self { engine }
    }
}

impl<S> tower_layer::Layer<S> for Layer {
    type Service = Service<S>;

    fn layer(&self, inner: S) -> Service<S> {
        Service::new(inner, self.engine.clone())
    }
}
