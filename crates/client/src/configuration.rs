//! One configuration out of several (spec service §5, "HA").
//!
//! | what                        | the one that counts        |
//! |-----------------------------|----------------------------|
//! | highest level, requests     | the largest                |
//! | length of a round           | the smallest               |
//! | first second, last second   | the smallest; the largest  |
//! | algorithm, parent addresses | the last that is given     |

use pitser_ksi::pdu::{AggregatorConfig, ExtenderConfig};

/// How the client may use several aggregators at once; in the order of services.
pub(crate) fn aggregators(configs: impl IntoIterator<Item = AggregatorConfig>) -> AggregatorConfig {
    let all = AggregatorConfig::default();
    configs.into_iter().fold(all, |all, next| AggregatorConfig {
        max_level: all.max_level.max(next.max_level),
        algorithm: next.algorithm.or(all.algorithm),
        period_ms: smaller(all.period_ms, next.period_ms),
        max_requests: all.max_requests.max(next.max_requests),
        parents: last_given(all.parents, next.parents),
    })
}

/// The same for extenders.
pub(crate) fn extenders(configs: impl IntoIterator<Item = ExtenderConfig>) -> ExtenderConfig {
    let all = ExtenderConfig::default();
    configs.into_iter().fold(all, |all, next| ExtenderConfig {
        max_requests: all.max_requests.max(next.max_requests),
        parents: last_given(all.parents, next.parents),
        calendar_first: smaller(all.calendar_first, next.calendar_first),
        calendar_last: all.calendar_last.max(next.calendar_last),
    })
}

fn smaller<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn last_given(before: Vec<String>, next: Vec<String>) -> Vec<String> {
    match next.is_empty() {
        true => before,
        false => next,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pitser_ksi::{Algorithm, Second};

    #[test]
    fn aggregators_are_used_for_what_the_best_of_them_takes() {
        let one = AggregatorConfig {
            max_level: Some(19),
            algorithm: Some(Algorithm::Sha512),
            period_ms: Some(400),
            max_requests: Some(1024),
            parents: vec!["a".into()],
        };
        let two = AggregatorConfig {
            max_level: Some(3),
            period_ms: Some(1000),
            max_requests: Some(2048),
            parents: vec!["b".into(), "c".into()],
            ..AggregatorConfig::default()
        };
        let silent = AggregatorConfig::default();
        let expected = AggregatorConfig {
            max_level: Some(19),
            algorithm: Some(Algorithm::Sha512),
            period_ms: Some(400),
            max_requests: Some(2048),
            parents: vec!["b".into(), "c".into()],
        };
        assert_eq!(aggregators([one, two, silent]), expected);
        assert_eq!(aggregators([]), AggregatorConfig::default());
    }

    #[test]
    fn extenders_reach_as_far_as_any_of_them() {
        let one = ExtenderConfig {
            max_requests: Some(5),
            parents: vec!["a".into()],
            calendar_first: Some(Second(10)),
            calendar_last: Some(Second(20)),
        };
        let two = ExtenderConfig {
            max_requests: Some(3),
            parents: vec![],
            calendar_first: Some(Second(5)),
            calendar_last: Some(Second(15)),
        };
        let expected = ExtenderConfig {
            calendar_first: Some(Second(5)),
            ..one.clone()
        };
        assert_eq!(extenders([one, two]), expected);
    }
}
