//! What must always hold, and what must happen somewhere so that a run shows something.

use stateright::Property;

use crate::model::{Model, Settings};
use crate::state::{DATABASE, GatewayId, Key, Kind, Life, Rule, ServerId, State, Step};

type Condition = fn(&Model, &State) -> bool;

/// The properties of a run with these settings.
pub(crate) fn of(settings: &Settings) -> Vec<Property<Model>> {
    let rules = RULES.iter().map(|(name, condition)| Property::always(name, *condition));
    let examples = EXAMPLES.iter().filter(|(_, _, belongs)| belongs(settings));
    rules.chain(examples.map(|(name, condition, _)| Property::sometimes(name, *condition))).collect()
}

/// Whether a property of this name must be found in a run, rather than must not.
pub(crate) fn is_example(name: &str) -> bool {
    EXAMPLES.iter().any(|(example, ..)| *example == name)
}

macro_rules! rule {
    ($name:literal, $rule:ident) => {
        ($name, (|model, state| !model.is_first(Rule::$rule as u32, state.broken == Some(Rule::$rule))) as Condition)
    };
}

/// The rules by the words of GUARANTEES. A step that breaks one says so in the state that it leads to.
const RULES: &[(&str, Condition)] = &[
    rule!("under hold a key is dispatched once", OneDispatchUnderHold),
    rule!("under one fence a key is dispatched once", OneDispatchAFence),
    rule!("a second dispatch is marked as ambiguous", AmbiguityIsSurfaced),
    rule!("nothing is dispatched after an answer", NoDispatchAfterAnAnswer),
    rule!("a granted fence is above every fence in use", FencesRise),
    rule!("a fence is used once", AFenceIsUsedOnce),
    rule!("a key has one effect", OneEffect),
    rule!("effects come in the order of fences", EffectsInFenceOrder),
    rule!("a key has one answer", OneAnswer),
    rule!("an erased answer is not shown", ErasedIsNeverShown),
    rule!("a settled attempt is not live again", SettledStaysSettled),
    rule!("an expired record is not live again", ExpiredStaysExpired),
];

/// Bits of [`Model::is_first`] from here on are those of examples.
const EXAMPLES_FROM: u32 = Rule::ExpiredStaysExpired as u32 + 1;

macro_rules! example {
    ($at:literal, $name:literal, $belongs:expr, $condition:expr) => {
        (
            $name,
            (|model, state| {
                let holds: fn(&State) -> bool = $condition;
                model.is_first(EXAMPLES_FROM + $at, holds(state))
            }) as Condition,
            $belongs as fn(&Settings) -> bool,
        )
    };
}

fn a_gateway(state: &State, holds: impl Fn(GatewayId) -> bool) -> bool {
    GatewayId::ALL.into_iter().any(|id| state.gateways[id].life == Life::Alive && holds(id))
}

fn a_key(holds: impl Fn(Key) -> bool) -> bool {
    Key::ALL.into_iter().any(holds)
}

fn granted_on(state: &State, server: ServerId) -> bool {
    let redis = &state.servers[server];
    redis.is_master
        && a_gateway(state, |id| {
            let who = &state.gateways[id];
            let is_there = (who.view, who.incarnation) == (redis.view, redis.incarnation);
            who.attempt.step == Step::Granted && who.attempt.view >= 2 && is_there
        })
}

fn settled_in_a_later_view(state: &State, step: Step) -> bool {
    a_gateway(state, |id| {
        let who = &state.gateways[id];
        who.attempt.step == step && who.attempt.view < who.view
    })
}

const fn loses(settings: &Settings) -> bool {
    (settings.restarts || settings.flushes) && settings.faults > 0
}

/// Name, what is to be seen, and in which runs.
type Example = (&'static str, Condition, fn(&Settings) -> bool);

const EXAMPLES: &[Example] = &[
    example!(0, "a grant in a later view on A", loses, |state| granted_on(state, ServerId::A)),
    example!(1, "a grant in a later view on B", |settings| settings.promotes, |state| granted_on(state, ServerId::B)),
    example!(2, "both servers take writes", |settings| settings.promotes, |state| {
        ServerId::ALL.into_iter().all(|id| state.servers[id].is_master && state.servers[id].view > 0)
    }),
    example!(3, "a claim is hydrated", |settings| loses(settings) && !settings.postgres_fails, |state| {
        let redis = &state.servers.A;
        a_gateway(state, |id| {
            let who = &state.gateways[id];
            let is_there = redis.view == who.view && who.attempt.view < who.view;
            let is_held =
                |key: Key| redis.records[key].is_in_flight() && redis.records[key].fact.fence == who.attempt.fence;
            is_there && who.attempt.key.is_some_and(is_held)
        })
    }),
    example!(4, "a later view is warm", loses, |state| {
        ServerId::ALL.into_iter().any(|id| state.servers[id].view >= 2 && state.servers[id].is_warm)
    }),
    example!(5, "a gateway that crashed is retired", |settings| settings.crashes, |state| {
        GatewayId::ALL.into_iter().any(|id| state.gateways[id].life == Life::Crashed && state.postgres.retired.has(id))
    }),
    example!(6, "a gateway that lives is retired", |settings| !settings.forces && settings.gateways > 1, |state| {
        a_gateway(state, |id| state.postgres.retired.has(id) && !state.gateways[id].is_fenced_off)
    }),
    example!(7, "a gateway retires itself", |settings| !settings.forces && settings.gateways > 1, |state| {
        a_gateway(state, |id| state.postgres.retired.has(id) && state.gateways[id].is_fenced_off)
    }),
    example!(
        8,
        "a claim of an earlier view is completed",
        |settings| settings.completes && settings.faults > 0,
        |state| { settled_in_a_later_view(state, Step::Completed) }
    ),
    example!(
        9,
        "a claim of an earlier view is released",
        |settings| settings.releases && settings.faults > 0,
        |state| { settled_in_a_later_view(state, Step::Released) }
    ),
    example!(10, "an attempt that takes over is sent", |settings| settings.retries, |state| {
        a_gateway(state, |id| {
            let attempt = &state.gateways[id].attempt;
            let is_ambiguous = attempt.key.is_some_and(|key| state.truth[key].ambiguous.has(attempt.fence));
            attempt.step == Step::Sent && is_ambiguous
        })
    }),
    example!(11, "a key is forgotten", |settings| settings.forgets, |state| {
        a_key(|key| !state.truth[key].erased.is_empty() && state.postgres.journal[key].kind == Kind::Erased)
    }),
    example!(12, "a key is dispatched anew after its retention", |settings| settings.retention, |state| {
        a_key(|key| state.truth[key].past > 0 && !state.truth[key].sent.is_empty())
    }),
    example!(13, "a view of the second timeline is active", |settings| settings.postgres_fails, |state| {
        state.postgres.timeline >= 2 && state.postgres.is_active
    }),
    example!(14, "a grant in a view of the second timeline", |settings| settings.postgres_fails, |state| {
        let view = &state.postgres;
        let is_new = view.timeline >= 2 && view.is_active;
        is_new
            && a_gateway(state, |id| {
                let attempt = &state.gateways[id].attempt;
                attempt.step == Step::Granted && attempt.view == view.view
            })
    }),
    example!(15, "a view is forced", |settings| settings.forces, |state| {
        state.forced.is_some() && a_gateway(state, |id| state.gateways[id].attempt.step == Step::Granted)
    }),
    example!(16, "an effect is applied", |settings| settings.upstream_checks, |state| {
        a_key(|key| state.truth[key].effects > 0)
    }),
    example!(17, "a session that joined is granted a claim", |settings| settings.joins, |state| {
        state.gateways.G2.life == Life::Alive && state.gateways.G2.attempt.step == Step::Granted
            || state.gateways.G3.life == Life::Alive && state.gateways.G3.attempt.step == Step::Granted
    }),
    example!(18, "an outcome is resolved as executed", |settings| settings.resolves, |state| {
        a_gateway(state, |id| state.gateways[id].attempt.resolution == Kind::Completed)
    }),
    example!(19, "an outcome is resolved as not executed", |settings| settings.resolves, |state| {
        a_gateway(state, |id| state.gateways[id].attempt.resolution == Kind::Released)
    }),
    example!(20, "two keys are sent", |settings| settings.keys > 1, |state| {
        Key::ALL.into_iter().all(|key| !state.truth[key].sent.is_empty())
    }),
    example!(21, "a grant in a view on the database", |settings| settings.database > 0, |state| {
        let is_there = |id: GatewayId| (state.gateways[id].view, state.gateways[id].incarnation);
        let view = &state.postgres;
        view.is_active
            && view.incarnation == DATABASE
            && a_gateway(state, |id| {
                let attempt = &state.gateways[id].attempt;
                attempt.step == Step::Granted && attempt.view == view.view && is_there(id) == (view.view, DATABASE)
            })
    }),
    example!(22, "a view on Redis after one on the database", |settings| settings.database > 0, |state| {
        let view = &state.postgres;
        state.database_left == 0 && view.is_active && view.incarnation != DATABASE && view.view >= 3
    }),
    example!(
        23,
        "a session is retired on the database",
        |settings| settings.database > 0 && settings.gateways > 1,
        |state| { !state.postgres.retired.is_empty() && state.postgres.last_active.1 == DATABASE }
    ),
    example!(24, "a claim whose reply was lost is released", |settings| settings.loses_releases, |state| {
        a_key(|key| ServerId::ALL.into_iter().any(|id| state.servers[id].records[key].is_of_lost))
    }),
];
