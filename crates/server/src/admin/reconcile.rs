//! Records held against effects, through the admin listener. It asks for the token: it may take long, and may settle.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use onceward::reconcile::Scope;
use serde::{Deserialize, Serialize};

use super::{Admin, records};

/// Examples of each kind, at most.
const EXAMPLES_MAX: usize = 1000;

/// What is compared, and whether what may be is settled.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Look {
    /// Only this route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// How many records of each kind are told; at most 1000.
    #[serde(default)]
    pub examples: usize,
    /// Settle what the routes' policies allow, and run the compensations that are due, before it is compared.
    #[serde(default)]
    pub repair: bool,
}

pub(super) async fn look(State(admin): State<Admin>, Json(look): Json<Look>) -> Response {
    if look.route.as_ref().is_some_and(|name| admin.engine().routes().named(name).is_none()) {
        return records::bad("There is no route of that name.");
    }
    let scope = Scope { route: look.route, completed: true, examples_max: look.examples.min(EXAMPLES_MAX) };
    match admin.inner.reconciler.look(&scope, look.repair).await {
        Ok(report) => Json(report.json()).into_response(),
        Err(error) => records::store_failed(&error),
    }
}
