//! How the views of a journal stand, looked at from outside: what `onceward view status` tells.

use std::time::Duration;

use onceward_core::record::SessionId;
use tokio_postgres::{Row, types::Type};

use super::{
    Failover,
    address::Address,
    forced::{Decision, Forced, unreachable},
    migrate::SchemaError,
    row::Parameter,
};

/// Of one moment, or of two that are close to each other: it decides nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JournalStanding {
    /// In the order of the partitions.
    pub views: Vec<ViewStanding>,
    /// All that are not over.
    pub members: Vec<MemberStanding>,
    /// Without whom views have gone on, as long as anything is at risk by it.
    pub forced: Vec<Decision>,
}

/// A partition's view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ViewStanding {
    /// Whose it is.
    pub partition: u16,
    /// 0 where none was opened yet.
    pub number: u64,
    /// Whether claims may be granted in it.
    pub serves: bool,
    /// It is on the database itself, since nobody reached Redis.
    pub is_on_database: bool,
    /// It was opened before the database failed over or was restored: the next one is opened above it.
    pub is_of_another_life: bool,
    /// Who has not said yet that all that it was granted before is in the journal. Where it is nobody and the view does
    /// not serve, a gateway is about to install it, or what was said is not known to be past losing.
    pub waits_for: Vec<SessionId>,
}

/// A session of a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStanding {
    /// Whose.
    pub session: SessionId,
    /// Others are about to retire it.
    pub is_retiring: bool,
    /// How long it was not heard of, by the database's clock.
    pub silent_for: Duration,
    /// A failover may still lose that it is a member, and until it may not, nothing is granted to it.
    pub may_be_lost: bool,
    /// Of how many partitions it does not reach the Redis, as it said in the last two seconds.
    pub unreached: u64,
}

/// Looks at the journal in a database, whose place may be taken so, and changes nothing.
///
/// # Errors
/// Where the database cannot be asked, or its schema is not that of this version.
pub async fn look(address: &Address, failover: &Failover) -> Result<JournalStanding, SchemaError> {
    let journal = Forced::connect(address).await?;
    let views = journal.ask("SELECT * FROM onceward.journal_views()", &[]).await?;
    let (failover, standbys) = failover.parameters();
    let parameters: [Parameter<'_>; 2] = [(&failover, Type::TEXT), (&standbys, Type::TEXT_ARRAY)];
    let members = journal.ask("SELECT * FROM onceward.journal_members($1, $2)", &parameters).await?;
    let views = views.iter().map(view).collect::<Result<_, _>>().map_err(unreachable)?;
    let members = members.iter().map(member).collect::<Result<_, _>>().map_err(unreachable)?;
    Ok(JournalStanding { views, members, forced: journal.decisions().await? })
}

fn view(row: &Row) -> Result<ViewStanding, tokio_postgres::Error> {
    let waits_for: Vec<&[u8]> = row.try_get(4)?;
    let (is_active, is_of_this_life): (bool, bool) = (row.try_get(2)?, row.try_get(3)?);
    Ok(ViewStanding {
        partition: u16::try_from(row.try_get::<_, i16>(0)?).unwrap_or_default(),
        number: u64::try_from(row.try_get::<_, i64>(1)?).unwrap_or_default(),
        serves: is_active && is_of_this_life,
        is_of_another_life: !is_of_this_life,
        is_on_database: row.try_get(5)?,
        waits_for: waits_for.into_iter().filter_map(session).collect(),
    })
}

fn member(row: &Row) -> Result<MemberStanding, tokio_postgres::Error> {
    let silent_us: i64 = row.try_get(2)?;
    Ok(MemberStanding {
        session: session(row.try_get(0)?).unwrap_or_default(),
        is_retiring: row.try_get(1)?,
        silent_for: Duration::from_micros(u64::try_from(silent_us).unwrap_or_default()),
        may_be_lost: row.try_get(3)?,
        unreached: u64::try_from(row.try_get::<_, i64>(4)?).unwrap_or_default(),
    })
}

fn session(bytes: &[u8]) -> Option<SessionId> {
    bytes.try_into().ok().map(SessionId)
}
