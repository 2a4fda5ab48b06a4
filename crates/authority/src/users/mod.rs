//! Who may ask, and how much of it.
//!
//! In scope: a user's bounds ([`Allowance`]), what of them is spent, and the file
//! that keeps users with their keys encrypted ([`mod@file`]). Time is an argument; only
//! [`file::read`], [`file::write`] and `spent`, which keeps used quotas, touch a disk.

pub mod file;
mod meter;
pub(crate) mod spent;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use pitser_ksi::hash::{Algorithm, HmacKey};
use pitser_ksi::pdu::Status;

use crate::clock::Micros;
use crate::config::{MAX_LEVEL, Secret, User};
use crate::metrics::Reason;
pub(crate) use meter::Spent;

/// What a user may use, besides levels up to a highest one. The default has no
/// bounds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allowance {
    /// Signatures a second. A second's worth may come at once.
    pub rate: Option<u32>,
    /// Signatures from midnight to midnight, UTC.
    pub per_day: Option<u64>,
    /// Signatures from the first of a month to the next, UTC.
    pub per_month: Option<u64>,
    /// Hash algorithms of what is signed; empty: every one that is still secure.
    pub algorithms: Vec<Algorithm>,
}

impl Allowance {
    fn is_metered(&self) -> bool {
        self.rate.is_some() || self.per_day.is_some() || self.per_month.is_some()
    }
}

/// A user who may ask, as the service knows them.
pub(crate) struct Member {
    /// Shared with every request of a round.
    pub(crate) login: Arc<str>,
    pub(crate) key: Secret,
    /// The same, for the many messages of the usual kind.
    pub(crate) mac_key: HmacKey,
    pub(crate) max_level: u8,
    allowance: Allowance,
    /// Kept when the list of users is read again.
    meter: Arc<Meter>,
}

/// What a user has used.
#[derive(Default)]
struct Meter {
    /// Requests that came into a round since the start.
    accepted: AtomicU64,
    /// Locked for one request, and only if the user has a rate or a quota.
    spent: Mutex<Spent>,
}

impl Meter {
    fn spent(&self) -> MutexGuard<'_, Spent> {
        self.spent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Member {
    /// Whether this user may have `algorithm`'s imprint signed at `level` now; if
    /// so it is counted as spent.
    pub(crate) fn admit(&self, level: u8, algorithm: Algorithm, now: Micros) -> Result<(), Denied> {
        if !algorithm.is_trusted() {
            return Err(Denied::Insecure(algorithm));
        }
        if level > self.max_level {
            return Err(Denied::Level {
                level,
                max_level: self.max_level,
            });
        }
        let allowed = &self.allowance.algorithms;
        if !allowed.is_empty() && !allowed.contains(&algorithm) {
            let longest = allowed.iter().map(|one| one.digest_len()).max();
            return Err(match longest {
                Some(longest) if longest < algorithm.digest_len() => Denied::TooLong {
                    algorithm,
                    longest: longest as u64 * 8,
                },
                _ => Denied::Algorithm(algorithm),
            });
        }
        if self.allowance.is_metered() {
            self.meter.spent().take(&self.allowance, now)?;
        }
        self.meter.accepted.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Stands in for users that do not exist: somebody unknown costs as much time
    /// as a wrong key.
    pub(crate) fn stranger() -> Self {
        Self {
            login: "".into(),
            mac_key: HmacKey::new(&[]),
            key: Vec::new().into(),
            max_level: 0,
            allowance: Allowance::default(),
            meter: Arc::default(),
        }
    }

    /// Takes back one [`Self::admit`], of a request that came into no round.
    pub(crate) fn give_back(&self) {
        if self.allowance.is_metered() {
            self.meter.spent().give_back();
        }
        self.meter.accepted.fetch_sub(1, Ordering::Relaxed);
    }

    /// Requests that came into a round, and got no signature of it, cost nothing.
    pub(crate) fn forgive(&self, requests: u64) {
        if self.allowance.is_metered() {
            self.meter.spent().forgive(requests);
        }
    }

    /// What this user is told of rounds that take `requests` each: as many requests,
    /// or as many as their rate allows.
    pub(crate) fn most_requests(&self, requests: usize) -> u64 {
        let most = requests as u64;
        self.allowance
            .rate
            .map_or(most, |rate| most.min(rate.into()))
    }

    /// What this user's own trees are best hashed with.
    pub(crate) fn algorithm(&self) -> Algorithm {
        let allowed = &self.allowance.algorithms;
        match allowed.first() {
            Some(first) if !allowed.contains(&Algorithm::Sha256) => *first,
            _ => Algorithm::Sha256,
        }
    }

    /// Requests that came into a round since the start.
    pub(crate) fn accepted(&self) -> u64 {
        self.meter.accepted.load(Ordering::Relaxed)
    }
}

/// Why a user does not get a signature. Displays as the answer says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Denied {
    #[error("{0} is no longer secure enough to be signed")]
    Insecure(Algorithm),
    #[error("level {level} is above {max_level}")]
    Level { level: u8, max_level: u8 },
    #[error("this user has no imprints by {0} signed")]
    Algorithm(Algorithm),
    #[error("{algorithm} is longer than the {longest} bits that this user may have signed")]
    TooLong { algorithm: Algorithm, longest: u64 },
    #[error("more than {0} requests a second; come back in the next one")]
    Rate(u32),
    #[error("the day's {0} signatures are used up; the next day begins at midnight UTC")]
    Day(u64),
    #[error("the month's {0} signatures are used up; the next month begins at midnight UTC")]
    Month(u64),
}

impl Denied {
    /// The aggregator's status (spec service §5).
    pub(crate) fn status(self) -> Status {
        match self {
            Self::Insecure(_) | Self::Algorithm(_) => Status::PAYLOAD_INVALID,
            Self::Level { .. } => Status::REQUEST_TOO_LARGE,
            Self::TooLong { .. } => Status::INPUT_TOO_LONG,
            Self::Rate(_) => Status::TOO_MANY_REQUESTS,
            Self::Day(_) | Self::Month(_) => Status::OVER_QUOTA,
        }
    }

    pub(crate) fn reason(self) -> Reason {
        match self {
            Self::Insecure(_) | Self::Algorithm(_) | Self::TooLong { .. } => Reason::Algorithm,
            Self::Level { .. } => Reason::Level,
            Self::Rate(_) => Reason::Rate,
            Self::Day(_) | Self::Month(_) => Reason::Quota,
        }
    }
}

type Members = HashMap<Arc<str>, Arc<Member>>;

/// Everybody who may ask. Replaced as a whole, while requests go on.
pub(crate) struct Directory {
    members: RwLock<Arc<Members>>,
    stranger: Member,
}

impl Directory {
    pub(crate) fn new(users: &[User]) -> Result<Self, UserError> {
        Ok(Self {
            members: RwLock::new(Arc::new(check(users, &Members::new())?)),
            stranger: Member::stranger(),
        })
    }

    pub(crate) fn get(&self, login: &str) -> Option<Arc<Member>> {
        let members = self.members.read().unwrap_or_else(PoisonError::into_inner);
        members.get(login).map(Arc::clone)
    }

    /// Nobody, with a key.
    pub(crate) fn stranger(&self) -> &Member {
        &self.stranger
    }

    /// From now on these users may ask; who stays keeps what they have spent.
    /// Nothing changes if the list cannot be right.
    pub(crate) fn replace(&self, users: &[User]) -> Result<(), UserError> {
        let members = Arc::new(check(users, &self.all())?);
        *self.members.write().unwrap_or_else(PoisonError::into_inner) = members;
        Ok(())
    }

    /// Everybody, in no order.
    pub(crate) fn members(&self) -> Vec<Arc<Member>> {
        self.all().values().map(Arc::clone).collect()
    }

    /// What users with quotas have spent.
    pub(crate) fn spent(&self) -> Vec<(Arc<str>, Spent)> {
        let all = self.all();
        let metered = all
            .values()
            .filter(|one| one.allowance.per_day.is_some() || one.allowance.per_month.is_some());
        let spent = metered.map(|one| (Arc::clone(&one.login), *one.meter.spent()));
        spent.collect()
    }

    /// Says what users had spent before the start.
    pub(crate) fn restore(&self, spent: Vec<(String, Spent)>) {
        let all = self.all();
        for (login, spent) in spent {
            if let Some(member) = all.get(login.as_str()) {
                *member.meter.spent() = spent;
            }
        }
    }

    fn all(&self) -> Arc<Members> {
        Arc::clone(&self.members.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Why the list of users cannot be right.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UserError {
    /// A user without a name.
    #[error("a user has an empty login; give every user one")]
    NoLogin,
    /// A user without a key: anybody could pass for them.
    #[error("user {login:?} has an empty key; give every user one")]
    NoKey {
        /// The login.
        login: String,
    },
    /// Two users with one name.
    #[error("user {login:?} is listed twice; remove one")]
    Twice {
        /// The login.
        login: String,
    },
    /// A level no client asks for.
    #[error("user {login:?} has max_level {max_level}, above {MAX_LEVEL}")]
    Level {
        /// The login.
        login: String,
        /// The configured level.
        max_level: u8,
    },
}

fn check(users: &[User], before: &Members) -> Result<Members, UserError> {
    let mut known = Members::new();
    for user in users {
        let login = user.login.clone();
        if login.is_empty() {
            return Err(UserError::NoLogin);
        }
        if user.key.expose().is_empty() {
            return Err(UserError::NoKey { login });
        }
        if user.max_level > MAX_LEVEL {
            return Err(UserError::Level {
                login,
                max_level: user.max_level,
            });
        }
        let meter = before
            .get(login.as_str())
            .map(|one| Arc::clone(&one.meter))
            .unwrap_or_default();
        let member = Member {
            login: login.as_str().into(),
            mac_key: HmacKey::new(user.key.expose()),
            key: user.key.clone(),
            max_level: user.max_level,
            allowance: user.allowance.clone(),
            meter,
        };
        let name = Arc::clone(&member.login);
        if known.insert(name, Arc::new(member)).is_some() {
            return Err(UserError::Twice { login });
        }
    }
    Ok(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Micros = Micros(1_773_480_413_000_000);

    fn user(allowance: Allowance) -> User {
        User {
            allowance,
            ..User::new("anon", "anon")
        }
    }

    fn directory(allowance: Allowance) -> Directory {
        Directory::new(&[user(allowance)]).unwrap()
    }

    #[test]
    fn each_denial_has_its_status() {
        let member = |allowance| {
            let mut user = user(allowance);
            user.max_level = 3;
            Directory::new(&[user]).unwrap().get("anon").unwrap()
        };
        let any = member(Allowance::default());
        let strict = member(Allowance {
            algorithms: vec![Algorithm::Sha256],
            ..Allowance::default()
        });
        let status = |member: &Member, level, algorithm| {
            member
                .admit(level, algorithm, NOW)
                .map_err(|denied| denied.status().0)
        };
        assert_eq!(status(&any, 3, Algorithm::Sha512), Ok(()));
        assert_eq!(status(&any, 4, Algorithm::Sha256), Err(0x0104));
        assert_eq!(status(&any, 0, Algorithm::Sha1), Err(0x0103));
        assert_eq!(status(&strict, 0, Algorithm::Sha256), Ok(()));
        assert_eq!(status(&strict, 0, Algorithm::Sha512), Err(0x0107));
        assert_eq!(status(&strict, 0, Algorithm::Sha3_256), Err(0x0103));
        assert_eq!((any.accepted(), strict.accepted()), (1, 1));
    }

    #[test]
    fn reading_the_list_again_gives_nothing_back() {
        let allowance = Allowance {
            per_day: Some(2),
            ..Allowance::default()
        };
        let directory = directory(allowance.clone());
        let admit = || {
            let member = directory.get("anon").unwrap();
            member.admit(0, Algorithm::Sha256, NOW)
        };
        assert_eq!((admit(), admit()), (Ok(()), Ok(())));
        directory
            .replace(&[user(allowance), User::new("b", "b")])
            .unwrap();
        assert_eq!(admit(), Err(Denied::Day(2)));
        directory.get("anon").unwrap().give_back();
        assert_eq!(admit(), Ok(()));
        assert!(directory.get("b").is_some());

        let wrong = directory.replace(&[User::new("", "b")]);
        assert!(matches!(wrong, Err(UserError::NoLogin)));
        assert!(directory.get("b").is_some());
        directory.replace(&[]).unwrap();
        assert!(directory.get("anon").is_none());
    }
}
