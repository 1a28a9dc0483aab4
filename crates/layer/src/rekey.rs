//! Whether another list of routes makes record ids otherwise, for some request.
//!
//! A record id is made of the key, of whose it is, and of the route's name (PROTOCOL section 3). Where a request that was
//! protected so far would get another id, its key is new, and a client that still retries would run a second time.
//!
//! Which route a request belongs to is compared without enumerating requests. The routes that match some path are the
//! same for all paths that are alike in what the patterns ask of them, so it is enough to look, for each pair of an
//! old and a new route, at the request that has of both patterns what they say and nothing else: whoever wins anywhere in
//! what the two have in common wins there too, since every other route that matches there matches everywhere.

use std::fmt;

use http::Method;

use crate::{
    pattern::{Pattern, Segment},
    route::{Principal, Route, Routes},
};

/// Stands for a segment or host that no pattern names.
const OTHER: &str = "any-other";

/// Requests whose keys would be new, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rekeyed {
    /// The route that they belong to so far.
    pub route: String,
    /// What changes, in words.
    pub why: String,
}

impl fmt::Display for Rekeyed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.route, self.why)
    }
}

impl Routes {
    /// What of `before` these routes would re-key: at most one line for each route that protects requests there. Empty
    /// where no key becomes new.
    #[must_use]
    pub fn rekeyed(&self, before: &Self) -> Vec<Rekeyed> {
        let protects = |route: &&std::sync::Arc<Route>| route.methods.iter().any(|method| route.covers(method));
        let rest_max = self.all().chain(before.all()).filter_map(|route| route.path.as_ref()).map(depth).max();
        let rest_max = rest_max.unwrap_or(0) + 1;
        let line = |old: &Route| {
            let why = self.made_otherwise(old).or_else(|| self.taken_over(before, old, rest_max))?;
            Some(Rekeyed { route: old.name.clone(), why })
        };
        before.all().filter(protects).filter_map(|old| line(old)).collect()
    }

    /// What the ids of a route that stays are made of, where that changes.
    fn made_otherwise(&self, old: &Route) -> Option<String> {
        let new = self.named(&old.name)?;
        if new.key.from != old.key.from {
            return Some("its key comes from elsewhere (key.from)".into());
        }
        let (new_told, old_told) = (new.told_by(), old.told_by());
        let by_auth = matches!((&new_told, &old_told), (Principal::Auth(_), _) | (_, Principal::Auth(_)));
        let parts = [
            ("auth.principal_header", by_auth && new_told != old_told),
            ("scope.tenant", new.scope.tenant != old.scope.tenant),
            ("scope.env", new.scope.env != old.scope.env),
            ("scope.principal", !by_auth && new_told != old_told),
        ];
        let (part, _) = parts.into_iter().find(|(_, differs)| *differs)?;
        Some(format!("whom its keys belong to is told otherwise ({part})"))
    }

    /// The first request of `old` that belongs to another route here.
    fn taken_over(&self, before: &Self, old: &Route, rest_max: usize) -> Option<String> {
        let everything = Pattern::all();
        let path_of = |route: &Route| route.path.clone().unwrap_or_else(|| everything.clone());
        let old_path = path_of(old);
        for new in self.all().filter(|new| new.name != old.name) {
            let Some(host) = shared_host(old, new) else { continue };
            for rest in 0..=rest_max {
                let Some(path) = meet(&old_path, &path_of(new), rest) else { break };
                let moved = old.methods.iter().filter(|method| old.covers(method)).find_map(|method| {
                    let was = before.of(method, &path, Some(host));
                    let is = self.of(method, &path, Some(host));
                    (was.name == old.name && is.name != old.name).then(|| sentence(method, &path, is))
                });
                if moved.is_some() {
                    return moved;
                }
            }
        }
        None
    }
}

fn sentence(method: &Method, path: &str, is: &Route) -> String {
    format!("{method} {} would belong to the route {}", path.replace(OTHER, "…"), is.name)
}

fn depth(pattern: &Pattern) -> usize {
    pattern.segments.len()
}

/// A host that both take, and no third route by its own.
fn shared_host<'r>(a: &'r Route, b: &'r Route) -> Option<&'r str> {
    match (a.host.as_deref(), b.host.as_deref()) {
        (Some(a), Some(b)) => a.eq_ignore_ascii_case(b).then_some(a),
        (Some(one), None) | (None, Some(one)) => Some(one),
        (None, None) => Some(OTHER),
    }
}

/// The path that both patterns match and that has nothing more in common with others than it must. Where both end in a
/// rest, that is of `rest` segments. `None` where no path matches both.
fn meet(a: &Pattern, b: &Pattern, rest: usize) -> Option<String> {
    let (mut left, mut right) = (a.segments.as_slice(), b.segments.as_slice());
    let mut path = String::new();
    let mut push = |segment: &str| {
        path.push('/');
        path.push_str(segment);
    };
    loop {
        match (left.split_first(), right.split_first()) {
            (None, None) => break,
            (Some((Segment::Rest(_), _)), None) | (None, Some((Segment::Rest(_), _))) => break,
            (None, Some(_)) | (Some(_), None) => return None,
            (Some((Segment::Rest(_), _)), Some((Segment::Rest(_), _))) => {
                (0..rest).for_each(|_| push(OTHER));
                break;
            }
            (Some((Segment::Rest(_), _)), Some((segment, more))) => {
                push(text_of(segment));
                right = more;
            }
            (Some((segment, more)), Some((Segment::Rest(_), _))) => {
                push(text_of(segment));
                left = more;
            }
            (Some((one, left_more)), Some((other, right_more))) => {
                push(both(one, other)?);
                (left, right) = (left_more, right_more);
            }
        }
    }
    if path.is_empty() {
        path.push('/');
    }
    Some(path)
}

fn text_of(segment: &Segment) -> &str {
    match segment {
        Segment::Literal(literal) => literal,
        Segment::Any(_) | Segment::Rest(_) => OTHER,
    }
}

/// One segment that meets both.
fn both<'s>(one: &'s Segment, other: &'s Segment) -> Option<&'s str> {
    match (one, other) {
        (Segment::Literal(one), Segment::Literal(other)) => (one == other).then_some(one.as_str()),
        // A placeholder takes no empty segment.
        (Segment::Literal(literal), _) | (_, Segment::Literal(literal)) => {
            (!literal.is_empty()).then_some(literal.as_str())
        }
        _ => Some(OTHER),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::{Part, Source};

    fn route(name: &str, path: &str) -> Route {
        Route { path: Some(Pattern::parse(path).unwrap()), ..Route::new(name) }
    }

    fn routes(named: Vec<Route>) -> Routes {
        Routes::new(named, Route::new("default"))
    }

    fn off(route: Route) -> Route {
        Route { mode: crate::route::Mode::Off, ..route }
    }

    fn lines(before: &Routes, after: &Routes) -> Vec<String> {
        after.rekeyed(before).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_change_that_moves_no_request_re_keys_nothing() {
        let before =
            routes(vec![route("order", "/orders/{id}"), route("new", "/orders/new"), route("all", "/{*rest}")]);
        assert!(lines(&before, &before).is_empty());
        // Another order, other names of placeholders, a pattern behind a closer one.
        let after =
            routes(vec![route("all", "/{*anything}"), route("new", "/orders/new"), route("order", "/orders/{number}")]);
        assert!(lines(&before, &after).is_empty());
        // What was not protected has no keys.
        let open = Routes::new(vec![route("a", "/a")], off(Route::new("default")));
        let more = Routes::new(vec![route("a", "/a"), route("b", "/b")], off(Route::new("default")));
        assert!(lines(&open, &more).is_empty());
        let get = Route { methods: vec![Method::GET], ..route("read", "/x") };
        assert!(lines(&routes(vec![]), &routes(vec![get])).is_empty());
    }

    #[test]
    fn a_request_that_would_belong_to_another_route_is_named() {
        let before = routes(vec![route("pay", "/pay/{id}")]);
        for (after, line) in [
            (
                routes(vec![route("pay", "/pay/{id}"), route("new", "/new")]),
                "default: POST /new would belong to the route new",
            ),
            (routes(vec![route("settle", "/pay/{id}")]), "pay: POST /pay/… would belong to the route settle"),
            (routes(vec![]), "pay: POST /pay/… would belong to the route default"),
            (
                routes(vec![route("pay", "/pay/{id}"), route("seven", "/pay/7")]),
                "pay: POST /pay/7 would belong to the route seven",
            ),
        ] {
            assert_eq!(lines(&before, &after), [line]);
        }
        let at_host = Route { host: Some("api.example".into()), ..route("hosted", "/pay/{id}") };
        let after = routes(vec![route("pay", "/pay/{id}"), at_host]);
        assert_eq!(lines(&before, &after), ["pay: POST /pay/… would belong to the route hosted"]);
        let fewer = Route { methods: vec![Method::PATCH], ..route("pay", "/pay/{id}") };
        assert_eq!(lines(&before, &routes(vec![fewer])), ["pay: POST /pay/… would belong to the route default"]);
    }

    #[test]
    fn a_rest_is_compared_at_every_depth_that_a_pattern_knows() {
        let before = routes(vec![route("rest", "/a/{*rest}")]);
        let after = routes(vec![route("deep", "/{x}/{y}/z/{*more}"), route("rest", "/a/{*rest}")]);
        let (rest, default) = ("rest: POST /a/…/z would belong", "default: POST /…/…/z would belong");
        let said = lines(&before, &after);
        assert!(said.len() == 2 && said[0].starts_with(rest) && said[1].starts_with(default), "{said:?}");
        let shallow = routes(vec![route("rest", "/a/{*rest}"), route("two", "/{x}/{y}")]);
        // As many literals, and a placeholder before a rest: but the rest has one literal more.
        assert_eq!(lines(&before, &shallow), ["default: POST /…/… would belong to the route two"]);
    }

    #[test]
    fn what_ids_are_made_of_is_compared_route_by_route() {
        let before = routes(vec![route("pay", "/pay")]);
        let mut from = route("pay", "/pay");
        from.key.from = vec![Source::Query("key".into())];
        let mut tenant = route("pay", "/pay");
        tenant.scope.tenant = Part::Fixed("acme".into());
        let mut principal = route("pay", "/pay");
        principal.scope.principal = Principal::None;
        for (changed, word) in [(from, "key.from"), (tenant, "scope.tenant"), (principal, "scope.principal")] {
            let said = lines(&before, &routes(vec![changed]));
            assert!(said.len() == 1 && said[0].contains(word), "{said:?}");
        }
        let mut longer = route("pay", "/pay");
        longer.timeout *= 2;
        assert!(lines(&before, &routes(vec![longer])).is_empty());
    }
}
