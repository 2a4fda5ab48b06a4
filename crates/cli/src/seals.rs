//! Extending the seals of evidence to a publication.

use crate::outcome::Failure;
use pitser_client::Client;
use pitser_ksi::publication::PublicationRecord;
use pitser_ksi::signature::Signature;
use std::collections::HashMap;

/// Every one of `seals` made up to `record`'s second, extended to it, by block number.
///
/// # Errors
/// The first seal that the extender refuses.
pub(crate) async fn extended(
    client: &Client,
    seals: Vec<(u64, Vec<u8>)>,
    record: &PublicationRecord,
) -> Result<HashMap<u64, Vec<u8>>, Failure> {
    let mut extended = HashMap::new();
    for (block, seal) in seals {
        let signature = Signature::decode(&seal).map_err(Failure::input)?;
        if signature.aggregation_time() > record.data.time {
            continue;
        }
        let longer = client
            .extend(&signature, Some(record.data.time), Some(record))
            .await
            .map_err(Failure::service)?;
        extended.insert(block, longer.encode());
    }
    Ok(extended)
}
