"""Who is who: one caller is never given another's answer."""

import wire
from case import Case


class CallersApart(Case):
    def post(self, *headers):
        return wire.post(self.proxy.port(), self.path, self.key, headers=headers)

    def test_the_same_key_of_two_authorizations_is_two_executions(self):
        first = self.post(("Authorization", "Bearer alice"))
        other = self.post(("Authorization", "Bearer bob"))
        self.assertEqual((first.status, other.status), (201, 201))
        self.assertNotEqual(first.body, other.body)
        self.assertFalse(other.replayed)
        self.assertEqual(self.effects(), 2)
        self.assert_replay_of(first, self.post(("Authorization", "Bearer alice")))
        self.assert_replay_of(other, self.post(("Authorization", "Bearer bob")))
        self.assertEqual(self.effects(), 2)

    def test_a_cookie_alone_names_nobody_and_the_refusal_says_what_to_set(self):
        problem = self.assert_problem(self.post(("Cookie", "session=1")), 400, "no-principal")
        self.assertIn("scope.principal", problem["detail"])
        self.assertEqual(self.calls(), [])

    def test_without_a_key_every_request_runs(self):
        self.key = None
        self.assertEqual((self.post().status, self.post().status), (201, 201))
        self.assertEqual(self.effects(), 2)


class CookiesAsCallers(Case):
    config = '[defaults]\nscope = { principal = ["cookie:session"] }\n'

    def test_once_it_is_set_the_cookie_tells_callers_apart(self):
        def post(session):
            return wire.post(self.proxy.port(), self.path, self.key, headers=[("Cookie", f"a=b; session={session}")])

        first, other = post("1"), post("2")
        self.assertNotEqual(first.body, other.body)
        self.assert_replay_of(first, post("1"))
        self.assertEqual(self.effects(), 2)
