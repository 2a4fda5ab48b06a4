//! Extending the seals of a trail to a publication.

use crate::outcome::Failure;
use pitser_client::Client;
use pitser_ksi::publication::PublicationRecord;
use pitser_ksi::signature::Signature;
use pitser_trail::View;
use std::collections::HashMap;

/// Every seal made up to `record`'s second, extended to it, by block number.
///
/// # Errors
/// The first seal that the extender refuses.
pub(crate) async fn extended(
    client: &Client,
    view: &View,
    record: &PublicationRecord,
) -> Result<HashMap<u64, Vec<u8>>, Failure> {
    let mut extended = HashMap::new();
    for block in &view.blocks {
        let Some(seal) = &block.seal else { continue };
        let signature = Signature::decode(seal).map_err(Failure::input)?;
        if signature.aggregation_time() > record.data.time {
            continue;
        }
        let longer = client
            .extend(&signature, Some(record.data.time), Some(record))
            .await
            .map_err(Failure::service)?;
        extended.insert(block.leaf.block, longer.encode());
    }
    Ok(extended)
}
