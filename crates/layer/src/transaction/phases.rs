//! Transactions with external calls between them, resumed where they were left.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use onceward_core::key::child_key;

use super::{
    Answer, Done, Failure, Grant, Request, Source, TransactionError, TransactionOf, Transactions, Working,
    attempts::{Attempts, Heard, commit},
    refused,
    session::{self, Arg, Calls as _, Mode, Session as _, word},
    told,
};

/// A request whose work has phases: answered before, or to be worked on.
#[derive(Debug)]
pub enum Started<T> {
    /// Somebody answered it; send that.
    Done(Done),
    /// Yours.
    Granted(T),
}

/// One phase's transaction.
type Phase<'w, S> = dyn for<'t> FnMut(&'t mut TransactionOf<'_, S>, &'t Grant) -> Working<'t, Bytes> + Send + 'w;

/// The phases of one execution. Each has a name; the same ones in the same order each time.
#[derive(Debug)]
pub struct Phases<'a, S> {
    pub(super) transactions: &'a Transactions<S>,
    request: Request,
    pub(super) grant: Grant,
    claim_id: [u8; 16],
    /// What each phase that is behind us gave, by name: those of earlier executions too.
    behind: Vec<(String, Bytes)>,
    at: usize,
}

impl<S: Source> Transactions<S> {
    /// Claims a request whose work has phases: transactions of this database, with calls to others between them.
    ///
    /// Each [`local`](Phases::local) phase takes effect once. Where the process dies, the next request with the key, after
    /// [`Terms::lease`](super::Terms::lease), goes on after the last phase that was committed. An
    /// [`external`](Phases::external) call may be made again, with the same derived key, by which its receiver recognises it.
    ///
    /// ```no_run
    /// # use onceward::transaction::*;
    /// # async fn charge(key: &str) -> Result<Vec<u8>, std::io::Error> { Ok(Vec::new()) }
    /// # async fn example(transactions: Transactions<tokio_postgres::Config>, request: Request) -> Result<Done, TransactionError> {
    /// let mut order = match transactions.phases(&request).await? {
    ///     Started::Done(done) => return Ok(done),
    ///     Started::Granted(order) => order,
    /// };
    /// order.local("reserve", |transaction, _| Box::pin(async move {
    ///     transaction.execute("update stock set count = count - 1 where item = 'hat'", &[]).await?;
    ///     Ok("".into())
    /// })).await?;
    /// let receipt = order.external("charge", async |key| Ok(charge(&key).await?.into())).await?;
    /// order.finish(|transaction, _| {
    ///     let receipt = receipt.clone();
    ///     Box::pin(async move {
    ///         transaction.execute("insert into sold (receipt) values ($1)", &[&&receipt[..]]).await?;
    ///         Ok(Answer::new(201, receipt))
    ///     })
    /// }).await
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`TransactionError`].
    pub async fn phases(&self, request: &Request) -> Result<Started<Phases<'_, S>>, TransactionError> {
        let claim_id = session::new_claim_id();
        let said = self.claim_alone(request, Mode::Resumable, &claim_id).await?;
        let Some(grant) = said.grant() else { return refused(said).map(Started::Done) };
        let behind = unpacked(said.data.unwrap_or_default().into());
        Ok(Started::Granted(Phases { transactions: self, request: request.clone(), grant, claim_id, behind, at: 0 }))
    }
}

impl<S: Source> Phases<'_, S> {
    /// The right that they run under.
    #[must_use]
    pub fn grant(&self) -> &Grant {
        &self.grant
    }

    /// A transaction of this database, committed together with the recovery point behind it. What `work` returns is kept (all
    /// phases together: 64 KiB), and is what a later execution gets instead of running it again.
    ///
    /// # Errors
    /// [`TransactionError`]. After a failure the key is free for the next request, which resumes before this phase.
    pub async fn local<W>(&mut self, name: &str, mut work: W) -> Result<Bytes, TransactionError>
    where
        W: for<'t> FnMut(&'t mut TransactionOf<'_, S>, &'t Grant) -> Working<'t, Bytes> + Send,
    {
        if let Some(kept) = self.kept(name)? {
            return Ok(kept);
        }
        self.write(name, &mut work).await
    }

    /// A call to somebody else, with the key that it is to send: derived from the request's key and the phase's name
    /// ([`child_key`]), so the same whenever it is made. Its result is kept as a local phase's is, in a
    /// transaction of its own; a crash between the two makes the call again.
    ///
    /// # Errors
    /// As [`local`](Self::local).
    pub async fn external<W, F>(&mut self, name: &str, work: W) -> Result<Bytes, TransactionError>
    where
        W: FnOnce(String) -> F + Send,
        F: Future<Output = Result<Bytes, Failure>> + Send,
    {
        if let Some(kept) = self.kept(name)? {
            return Ok(kept);
        }
        let key = child_key(&self.request.key, name);
        match work(key).await {
            Ok(result) => {
                // A crash here: the call is made again, under the same key.
                self.write(name, &mut |_, _| {
                    let result = result.clone();
                    Box::pin(async move { Ok(result) })
                })
                .await
            }
            Err(failure) => Err(self.end(failure).await),
        }
    }

    /// The last transaction: its answer is the request's.
    ///
    /// # Errors
    /// As [`local`](Self::local).
    pub async fn finish<W>(mut self, mut work: W) -> Result<Done, TransactionError>
    where
        W: for<'t> FnMut(&'t mut TransactionOf<'_, S>, &'t Grant) -> Working<'t, Answer> + Send,
    {
        let terms = &self.transactions.terms;
        let mut attempts = Attempts::new(terms);
        while attempts.another().await {
            if !attempts.is_first() {
                // Committed, perhaps, although its answer was lost.
                let said = self.claim_again(&mut attempts).await?;
                let Some(grant) = said.grant() else {
                    return refused(said).map(|done| Done { replayed: false, ..done });
                };
                attempts.nothing_stands();
                self.grant = grant;
            }
            let tried = async {
                let mut connection = self.transactions.source.connection().await.map_err(Failure::Rollback)?;
                let heard = Heard::so_far(&self.transactions.source, &connection);
                let mut transaction = connection.begin(terms.isolation).await.map_err(Failure::Rollback)?;
                hold(&mut transaction, &self.grant).await?;
                let answer = work(&mut transaction, &self.grant).await?;
                session::settle(&mut transaction, &self.grant, &answer, false, terms)
                    .await
                    .map_err(Failure::Rollback)?;
                commit(transaction).await.map_err(Failure::Rollback)?;
                heard.no_more(&self.transactions.source, &connection).map_err(Failure::Rollback)?;
                Ok(answer)
            };
            match tried.await {
                Ok(answer) => return Ok(Done { answer, replayed: false }),
                Err(Failure::Rollback(error)) => {
                    if let Err(error) = attempts.failed(error) {
                        return Err(self.end(Failure::Rollback(error)).await);
                    }
                }
                Err(refused) => return Err(self.end(refused).await),
            }
        }
        Err(attempts.given_up())
    }

    /// What the phase gave in an earlier execution.
    fn kept(&mut self, name: &str) -> Result<Option<Bytes>, TransactionError> {
        let Some((before, kept)) = self.behind.get(self.at) else { return Ok(None) };
        if before != name {
            let number = u32::try_from(self.at + 1).unwrap_or(u32::MAX);
            return Err(TransactionError::PhaseRenamed { number, before: before.clone(), now: name.to_owned() });
        }
        self.at += 1;
        Ok(Some(kept.clone()))
    }

    /// What the record says of the attempts so far.
    async fn claim_again(&self, attempts: &mut Attempts) -> Result<session::Said, TransactionError> {
        let said = self.transactions.claim_alone(&self.request, Mode::Resumable, &self.claim_id).await;
        said.map_err(|error| attempts.ended_by(error))
    }

    /// One transaction with its recovery point.
    async fn write(&mut self, name: &str, work: &mut Phase<'_, S>) -> Result<Bytes, TransactionError> {
        let terms = &self.transactions.terms;
        let mut attempts = Attempts::new(terms);
        while attempts.another().await {
            if !attempts.is_first() {
                // Committed, perhaps, although its answer was lost: then its recovery point is there.
                let said = self.claim_again(&mut attempts).await?;
                let Some(grant) = said.grant() else {
                    return Err(TransactionError::ClaimLost("it was settled".into()));
                };
                self.grant = grant;
                let behind = unpacked(said.data.unwrap_or_default().into());
                if behind.len() > self.behind.len() {
                    self.behind = behind;
                    return self.kept(name)?.ok_or_else(|| TransactionError::ClaimLost("its phases are others".into()));
                }
                attempts.nothing_stands();
            }
            let seq = i64::try_from(self.behind.len() + 1).unwrap_or(i64::MAX);
            let tried = async {
                let mut connection = self.transactions.source.connection().await.map_err(Failure::Rollback)?;
                let heard = Heard::so_far(&self.transactions.source, &connection);
                let mut transaction = connection.begin(terms.isolation).await.map_err(Failure::Rollback)?;
                hold(&mut transaction, &self.grant).await?;
                let result = work(&mut transaction, &self.grant).await?;
                let data = packed(&self.behind, name, &result);
                let args = [
                    Arg::Bytes(&self.grant.record),
                    Arg::Int(self.grant.fence),
                    Arg::Int(seq),
                    Arg::Text(name),
                    Arg::Bytes(&data),
                    Arg::Int(session::micros(terms.lease)),
                ];
                let renewed = word(
                    "onceward.renew($1, $2, $6 * interval '1 microsecond')::text || onceward.checkpoint($1, $2, $3, $4, $5)",
                );
                transaction.call(&renewed, &args).await.map_err(Failure::Rollback)?;
                commit(transaction).await.map_err(Failure::Rollback)?;
                heard.no_more(&self.transactions.source, &connection).map_err(Failure::Rollback)?;
                Ok(result)
            };
            match tried.await {
                Ok(result) => {
                    self.behind.push((name.to_owned(), result.clone()));
                    self.at = self.behind.len();
                    return Ok(result);
                }
                Err(Failure::Rollback(error)) => {
                    if let Err(error) = attempts.failed(error) {
                        return Err(self.end(Failure::Rollback(error)).await);
                    }
                }
                Err(refused) => return Err(self.end(refused).await),
            }
        }
        Err(attempts.given_up())
    }

    /// After a failure that another attempt would not mend: the key is free, or refused for good.
    async fn end(&self, failure: Failure) -> TransactionError {
        let ended = match &failure {
            Failure::Rollback(error) if session::state(error).is_some_and(|state| state.starts_with("ID")) => Ok(()),
            Failure::Rollback(_) => self.transactions.give_back(&self.grant).await,
            // Recorded after the rollback, never inside it.
            Failure::Refused(answer) => self.transactions.settle_alone(&self.grant, answer, true).await,
        };
        match (failure, ended) {
            // Where it could not be given back, its lease ends by itself, and the next request resumes it.
            (Failure::Rollback(error), _) => match told(error, 1) {
                TransactionError::Database(error) => TransactionError::Work(error),
                other => other,
            },
            (Failure::Refused(answer), Ok(())) => TransactionError::Refused(answer),
            (Failure::Refused(_), Err(error)) => error,
        }
    }
}

/// Refuses whoever was overtaken, and whoever would overtake waits for the end of the transaction.
async fn hold(calls: &mut impl session::Calls, grant: &Grant) -> Result<(), Failure> {
    let held = word("onceward.assert_fence($1, $2)");
    calls.call(&held, &[Arg::Bytes(&grant.record), Arg::Int(grant.fence)]).await.map(drop).map_err(Failure::Rollback)
}

/// The phases so far: of each u16 length and name, u32 length and result.
fn packed(behind: &[(String, Bytes)], name: &str, result: &Bytes) -> Bytes {
    let mut bytes = BytesMut::new();
    let all = behind.iter().map(|(name, kept)| (name.as_str(), kept)).chain([(name, result)]);
    for (name, kept) in all {
        bytes.put_u16(u16::try_from(name.len()).unwrap_or(u16::MAX));
        bytes.put_slice(name.as_bytes());
        bytes.put_u32(u32::try_from(kept.len()).unwrap_or(u32::MAX));
        bytes.put_slice(kept);
    }
    bytes.freeze()
}

fn unpacked(mut bytes: Bytes) -> Vec<(String, Bytes)> {
    let mut phases = Vec::new();
    while let Ok(size) = bytes.try_get_u16()
        && bytes.len() >= usize::from(size)
    {
        let name = String::from_utf8_lossy(&bytes.split_to(usize::from(size))).into_owned();
        let Ok(size) = bytes.try_get_u32() else { break };
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        if bytes.len() < size {
            break;
        }
        phases.push((name, bytes.split_to(size)));
    }
    phases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_read_back_with_their_names_and_what_is_cut_off_is_left_out() {
        let behind = vec![("a".to_owned(), Bytes::new()), ("bé".to_owned(), Bytes::from_static(b"two"))];
        let bytes = packed(&behind, "c", &Bytes::from_static(b"three"));
        let mut all = behind.clone();
        all.push(("c".into(), Bytes::from_static(b"three")));
        assert_eq!(unpacked(bytes.clone()), all);
        assert_eq!(unpacked(bytes.slice(..bytes.len() - 1)), behind);
        assert!(unpacked(Bytes::new()).is_empty());
    }
}
