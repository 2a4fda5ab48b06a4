//! The message that a service gets and answers a hundred thousand times a second,
//! read and written without allocating: a header, one request for a signature or
//! the signature, and a MAC. The bytes are those of the parent module.

use super::{HEADER, MAC, PAYLOAD, SignRequest, Status, sealed::Codec as _};
use crate::{
    chain::{AggregationChain, Link, shape},
    error::EncodeError,
    hash::{Algorithm, HmacKey, Imprint},
    pdu::{AggregationRequestPayload, AggregationResponsePayload},
    time::Second,
    tlv::{Element, Writer},
};

/// A request for one signature and nothing else, as it came; its MAC is still to
/// be checked.
#[derive(Clone, Copy, Debug)]
pub struct UsualRequest<'a> {
    /// Whose key the MAC claims to be by.
    pub login_id: &'a str,
    /// Tells apart the runs of one client.
    pub instance_id: Option<u64>,
    /// Counts the messages of one run.
    pub message_id: Option<u64>,
    /// Echoed by the answer.
    pub request_id: u64,
    /// What to sign.
    pub input: Imprint,
    /// The level of the client's tree, whose root `input` is; 0 for a document.
    pub level: u8,
    mac: Imprint,
    covered: &'a [u8],
}

impl<'a> UsualRequest<'a> {
    /// Reads a message of that form. `None` for every other message, good or bad:
    /// [`super::AggregationRequest::decode`] says what it is.
    #[must_use]
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        let outer = Element::expect(bytes, AggregationRequestPayload::TAG).ok()?;
        let mut children = outer.children();
        let header = children.element().ok().filter(|e| e.tag == HEADER)?;
        let payload = children.element().ok().filter(|e| e.tag == PAYLOAD)?;
        let mac = children.element().ok().filter(|e| e.tag == MAC)?;
        children.end().ok()?;
        let mac = mac.imprint().ok()?;
        let (login_id, instance_id, message_id) = read_header(&header)?;
        let SignRequest {
            request_id,
            input,
            level,
        } = SignRequest::decode(&payload).ok()?;
        Some(Self {
            login_id,
            instance_id,
            message_id,
            request_id,
            input,
            level,
            mac,
            covered: &bytes[..bytes.len() - mac.digest().len()],
        })
    }

    /// Whether the message carries the MAC that `key` makes. Takes the same time
    /// wherever a wrong MAC differs.
    #[must_use]
    pub fn verify_mac(&self, key: &HmacKey) -> bool {
        key.mac(self.mac.algorithm(), &[self.covered])
            .ct_eq(&self.mac)
    }

    /// The algorithm of the MAC, in which an answer should be authenticated.
    #[must_use]
    pub fn mac_algorithm(&self) -> Algorithm {
        self.mac.algorithm()
    }
}

fn read_header<'a>(header: &Element<'a>) -> Option<(&'a str, Option<u64>, Option<u64>)> {
    let (mut login_id, mut instance_id, mut message_id) = (None, None, None);
    for child in header.children() {
        let child = child.ok()?;
        match child.tag {
            0x01 => child.fill(&mut login_id, child.string().ok()?).ok()?,
            0x02 => child.fill(&mut instance_id, child.integer().ok()?).ok()?,
            0x03 => child.fill(&mut message_id, child.integer().ok()?).ok()?,
            _ => return None,
        }
    }
    Some((login_id?, instance_id, message_id))
}

/// A signature on its way to who asked for it.
///
/// All of a round share `index` and `tail`: the numbers that lead from the top
/// down to the round's tree, and what stands in a signature behind the lowest
/// chain.
#[derive(Clone, Copy, Debug)]
pub struct SignatureAnswer<'a> {
    /// Echoed from the request's header.
    pub login_id: &'a str,
    /// Echoed from the request's header.
    pub instance_id: Option<u64>,
    /// Echoed from the request's header.
    pub message_id: Option<u64>,
    /// Echoed from the request.
    pub request_id: u64,
    /// What was signed.
    pub input: Imprint,
    /// When.
    pub aggregation_time: Second,
    /// The chain index of the chains above; the own shape is added.
    pub index: &'a [u64],
    /// The algorithm of the own chain's nodes.
    pub algorithm: Algorithm,
    /// Encoded chains above, calendar chain and authentication.
    pub tail: &'a [u8],
}

impl SignatureAnswer<'_> {
    /// Appends the message to `out`, with a MAC by `key`: the same bytes that a
    /// [`super::AggregationResponse`] makes. O(links), no allocation where `out`
    /// has room. `links` are the own chain's.
    ///
    /// # Errors
    /// The message would exceed [`crate::tlv::MAX`] bytes, or the chain
    /// [`crate::chain::MAX_SHAPE_LINKS`] links; `out` is as it was.
    pub fn write(
        &self,
        out: &mut Vec<u8>,
        links: &[Link],
        key: &HmacKey,
        mac_algorithm: Algorithm,
    ) -> Result<(), EncodeError> {
        let from = out.len();
        let shape = shape(links).ok_or(EncodeError {
            tag: AggregationChain::TAG,
            length: links.len(),
        })?;
        let mut writer = Writer::behind(std::mem::take(out));
        writer.nested(AggregationResponsePayload::TAG, |w| {
            w.nested(HEADER, |w| {
                w.string(0x01, self.login_id)
                    .optional_integer(0x02, self.instance_id)
                    .optional_integer(0x03, self.message_id)
            });
            w.nested(PAYLOAD, |w| {
                w.integer(0x01, self.request_id)
                    .integer(0x04, Status::OK.0)
                    .nested(AggregationChain::TAG, |w| self.write_chain(w, shape, links))
                    .raw(self.tail)
            });
            w.imprint(MAC, &Imprint::zero(mac_algorithm))
        });
        let outcome = writer.hand_back(out);
        if outcome.is_err() {
            out.truncate(from);
            return outcome;
        }
        let digest_at = out.len() - mac_algorithm.digest_len();
        let (covered, digest) = out.split_at_mut(digest_at);
        digest.copy_from_slice(key.mac(mac_algorithm, &[&covered[from..]]).digest());
        Ok(())
    }

    fn write_chain<'w>(
        &self,
        writer: &'w mut Writer,
        shape: u64,
        links: &[Link],
    ) -> &'w mut Writer {
        writer
            .integer(0x02, self.aggregation_time.0)
            .each(self.index.iter().chain([&shape]), |w, &index| {
                _ = w.integer(0x03, index);
            })
            .imprint(0x05, &self.input)
            .integer(0x06, self.algorithm.id().into())
            .each(links, |w, link| link.write(w))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        hash::hash,
        pdu::{AggregationRequest, AggregationResponse, Header, SignResult},
        tree::TreeBuilder,
    };

    fn headers() -> impl Iterator<Item = Header> {
        let ids = [None, Some(0), Some(77), Some(u64::MAX)];
        ids.into_iter().map(|id| Header {
            login_id: "käyttäjä".to_owned(),
            instance_id: id,
            message_id: id.map(|id| id / 3),
        })
    }

    fn request(header: Header, level: u8, algorithm: Algorithm) -> AggregationRequest {
        let sign = SignRequest {
            request_id: 0x0102_0304,
            input: hash(algorithm, &[b"document"]),
            level,
        };
        AggregationRequest::new(header, AggregationRequestPayload::Sign(sign))
    }

    /// What is read the quick way is what the decoder reads.
    fn check_like_decoder(bytes: &[u8], key: &HmacKey) -> bool {
        let Some(usual) = UsualRequest::read(bytes) else {
            return false;
        };
        let received = AggregationRequest::decode(bytes).unwrap();
        let [AggregationRequestPayload::Sign(sign)] = received.pdu.payloads.as_slice() else {
            panic!("another payload");
        };
        let header = received.pdu.header.as_ref().unwrap();
        assert_eq!(usual.login_id, header.login_id);
        assert_eq!(usual.instance_id, header.instance_id);
        assert_eq!(usual.message_id, header.message_id);
        assert_eq!(usual.request_id, sign.request_id);
        assert_eq!((usual.input, usual.level), (sign.input, sign.level));
        assert_eq!(Some(usual.mac_algorithm()), received.mac_algorithm());
        assert_eq!(usual.verify_mac(key), received.verify_mac(b"key"));
        usual.verify_mac(key)
    }

    #[test]
    fn usual_requests_are_read_as_the_decoder_reads_them() {
        let key = HmacKey::new(b"key");
        for header in headers() {
            for (level, algorithm) in [(0, Algorithm::Sha256), (7, Algorithm::Sha512)] {
                let request = request(header.clone(), level, algorithm);
                let good = request.encode(b"key", algorithm).unwrap();
                assert!(check_like_decoder(&good, &key));
                for bit in 0..8 * good.len() {
                    let mut damaged = good.clone();
                    damaged[bit / 8] ^= 1 << (bit % 8);
                    assert!(!check_like_decoder(&damaged, &key), "bit {bit}");
                }
                for end in 0..good.len() {
                    assert!(!check_like_decoder(&good[..end], &key), "{end} bytes");
                }
            }
        }
    }

    #[test]
    fn other_messages_are_left_to_the_decoder() {
        let mut twice = request(Header::new("anon"), 0, Algorithm::Sha256);
        twice.payloads.push(AggregationRequestPayload::Config);
        let bytes = twice.encode(b"key", Algorithm::Sha256).unwrap();
        assert!(UsualRequest::read(&bytes).is_none());
        assert!(AggregationRequest::decode(&bytes).is_ok());
    }

    #[test]
    fn signatures_are_written_as_the_encoder_writes_them() {
        let key = HmacKey::new(b"key");
        let mut builder = TreeBuilder::new(Algorithm::Sha256);
        for number in 0..5u8 {
            let leaf = hash(Algorithm::Sha256, &[&[number]]);
            builder.push_with_metadata(leaf, number, [1; 8]).unwrap();
        }
        let tree = builder.finish().unwrap();
        let mut out = b"before".to_vec();
        for (number, header) in headers().enumerate() {
            let chain = AggregationChain {
                aggregation_time: Second(1_700_000_000),
                index: vec![9, 5, shape(&tree.links(number)).unwrap()],
                input_data: None,
                input: hash(Algorithm::Sha256, &[&[number as u8]]),
                algorithm: Algorithm::Sha256,
                links: tree.links(number),
            };
            let mut signature = Writer::new();
            chain.write(&mut signature);
            signature.raw(b"tail");
            let result = SignResult {
                request_id: 3,
                status: Status::OK,
                message: None,
                signature: signature.finish().unwrap(),
            };
            let payload = AggregationResponsePayload::Result(result);
            for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
                let expected = AggregationResponse::new(header.clone(), payload.clone());
                let expected = expected.encode(b"key", algorithm).unwrap();
                let answer = SignatureAnswer {
                    login_id: &header.login_id,
                    instance_id: header.instance_id,
                    message_id: header.message_id,
                    request_id: 3,
                    input: chain.input,
                    aggregation_time: chain.aggregation_time,
                    index: &[9, 5],
                    algorithm: chain.algorithm,
                    tail: b"tail",
                };
                let from = out.len();
                answer
                    .write(&mut out, &chain.links, &key, algorithm)
                    .unwrap();
                assert_eq!(out[from..], expected);
            }
        }
        assert!(out.starts_with(b"before"));
    }

    #[test]
    fn an_answer_too_long_leaves_the_buffer_as_it_was() {
        let tail = vec![0; crate::tlv::MAX];
        let answer = SignatureAnswer {
            login_id: "anon",
            instance_id: None,
            message_id: None,
            request_id: 3,
            input: hash(Algorithm::Sha256, &[]),
            aggregation_time: Second(1),
            index: &[],
            algorithm: Algorithm::Sha256,
            tail: &tail,
        };
        let mut out = b"before".to_vec();
        let key = HmacKey::new(b"key");
        assert!(
            answer
                .write(&mut out, &[], &key, Algorithm::Sha256)
                .is_err()
        );
        assert_eq!(out, b"before");
    }
}
