//! SHA-256 of several messages at a time: the crate's only `unsafe` code.
//!
//! ```text
//! blocks:  | message 0, padded | message 1, padded | …    all of equally many blocks
//! nodes:   | left 0 | right 0 | left 1 | right 1 | …      digests, as they lie in a tree
//! AVX-512          sixteen messages, each in its 32 bit lane of every register
//! SHA extensions   two messages, whose instructions hide each other's latency
//! ```
//!
//! Which of them the processor has is found out at run time; `sha2` does the rest.
//! The instructions that need `unsafe` are those that take pointers: each loads
//! from or stores to an array of exactly the register's size. A [`Kernel`] exists
//! only where its instructions do.

#![allow(
    unsafe_code,
    reason = "vector instructions; compared with sha2 in the tests below"
)]

use core::fmt;
use sha2::{compress256, digest::generic_array::GenericArray};

/// What the compression function takes in at a time.
pub(super) type Block = [u8; 64];

/// A SHA-256 digest.
pub(crate) type Digest = [u8; 32];

/// Messages that fill the widest lanes.
pub(crate) const WIDTH: usize = 16;

/// How this processor computes SHA-256 of many messages. What comes out does not
/// depend on it.
///
/// ```
/// use pitser_ksi::hash::Kernel;
/// assert_eq!(Kernel::all().next(), Some(Kernel::best()));
/// assert!(Kernel::all().any(|kernel| kernel.to_string() == "sha2"));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel(Width);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    #[cfg(target_arch = "x86_64")]
    Sixteen,
    #[cfg(target_arch = "x86_64")]
    Two,
    One,
}

impl Kernel {
    /// The fastest one.
    #[must_use]
    pub fn best() -> Self {
        Self::all().next().expect("the last one is always there")
    }

    /// All that this processor can run, the fastest first. The last, one message
    /// after the other by `sha2`, is always there.
    #[cfg(target_arch = "x86_64")]
    pub fn all() -> impl Iterator<Item = Self> {
        use std::arch::is_x86_feature_detected as has;
        let two = has!("sha") && has!("sse4.1") && has!("ssse3");
        // What does not fill sixteen lanes goes by twos.
        let sixteen = two && has!("avx512f") && has!("avx512bw");
        let some = [
            sixteen.then_some(Width::Sixteen),
            two.then_some(Width::Two),
            Some(Width::One),
        ];
        some.into_iter().flatten().map(Self)
    }

    /// All that this processor can run: one message after the other, by `sha2`.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn all() -> impl Iterator<Item = Self> {
        core::iter::once(Self(Width::One))
    }

    /// The digests of `digests.len()` padded messages of `length` blocks each.
    ///
    /// # Panics
    /// If `length` is 0 or `blocks` are not just those of the messages.
    pub(super) fn digest(self, blocks: &[Block], length: usize, digests: &mut [Digest]) {
        assert_eq!(blocks.len(), length * digests.len());
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Width::Sixteen => by_sixteens(blocks, length, digests),
            #[cfg(target_arch = "x86_64")]
            Width::Two => by_twos(blocks, length, digests),
            Width::One => one_by_one(blocks, length, digests),
        }
    }

    /// The digests of as many nodes as there are `pairs`: of
    /// `01 ‖ left ‖ 01 ‖ right ‖ level`.
    ///
    /// # Panics
    /// If there are not as many `parents`.
    pub(crate) fn nodes(self, pairs: &[[Digest; 2]], level: u8, parents: &mut [Digest]) {
        assert_eq!(pairs.len(), parents.len());
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Width::Sixteen => nodes_by_sixteens(pairs, level, parents),
            #[cfg(target_arch = "x86_64")]
            Width::Two => nodes_by_twos(pairs, level, parents),
            Width::One => nodes_one_by_one(pairs, level, parents),
        }
    }

    /// The digests of two nodes, of which each may have a level of its own; `None` if
    /// they are better computed one after the other.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn two_nodes(
        self,
        children: [[&Digest; 2]; 2],
        levels: [u8; 2],
    ) -> Option<[Digest; 2]> {
        match self.0 {
            // SAFETY: `Kernel::all` has found the instructions.
            Width::Sixteen | Width::Two => Some(unsafe { x86::two_nodes(children, levels) }),
            Width::One => None,
        }
    }

    /// `None`: they are better computed one after the other.
    #[cfg(not(target_arch = "x86_64"))]
    pub(super) fn two_nodes(self, _: [[&Digest; 2]; 2], _: [u8; 2]) -> Option<[Digest; 2]> {
        None
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            #[cfg(target_arch = "x86_64")]
            Width::Sixteen => "AVX-512",
            #[cfg(target_arch = "x86_64")]
            Width::Two => "SHA extensions",
            Width::One => "sha2",
        })
    }
}

/// From here on idle lanes cost less than going by twos.
#[cfg(target_arch = "x86_64")]
const WORTHWHILE: usize = 8;

#[cfg(target_arch = "x86_64")]
fn by_sixteens(blocks: &[Block], length: usize, digests: &mut [Digest]) {
    let groups = blocks.chunks(WIDTH * length);
    for (blocks, digests) in groups.zip(digests.chunks_mut(WIDTH)) {
        if digests.len() < WORTHWHILE {
            by_twos(blocks, length, digests);
            continue;
        }
        let last = digests.len() - 1;
        let messages = core::array::from_fn(|i| &blocks[i.min(last) * length..][..length]);
        // SAFETY: `Kernel::all` has found the instructions.
        let found = unsafe { x86::sixteen(messages) };
        digests.copy_from_slice(&found[..=last]);
    }
}

#[cfg(target_arch = "x86_64")]
fn by_twos(blocks: &[Block], length: usize, digests: &mut [Digest]) {
    let pairs = blocks.chunks(2 * length);
    for (blocks, digests) in pairs.zip(digests.chunks_mut(2)) {
        let last = digests.len() - 1;
        let messages = [&blocks[..length], &blocks[last * length..]];
        // SAFETY: `Kernel::all` has found the instructions.
        let found = unsafe { x86::two(messages) };
        digests.copy_from_slice(&found[..=last]);
    }
}

fn one_by_one(blocks: &[Block], length: usize, digests: &mut [Digest]) {
    for (message, digest) in blocks.chunks(length).zip(digests) {
        *digest = one(message);
    }
}

#[inline(always)]
fn one(message: &[Block]) -> Digest {
    let mut state = INITIAL;
    for block in message {
        compress256(&mut state, core::slice::from_ref(block.into()));
    }
    bytes_of(state)
}

/// The digest of the concatenation of `parts`, if that fits into two blocks: without
/// the bookkeeping of a hasher that takes any number of them.
#[inline(always)]
pub(super) fn short(parts: &[&[u8]]) -> Option<Digest> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let count = blocks_of(length);
    let mut blocks = [[0; 64]; 2];
    let bytes = blocks.get_mut(..count)?.as_flattened_mut();
    let mut end = 0;
    for part in parts {
        bytes[end..][..part.len()].copy_from_slice(part);
        end += part.len();
    }
    pad(bytes, length);
    Some(one(&blocks[..count]))
}

/// How many blocks a message of `length` bytes takes: after it comes at least one
/// byte of padding, and its length.
pub(super) fn blocks_of(length: usize) -> usize {
    (length + 1 + size_of::<u64>()).div_ceil(size_of::<Block>())
}

/// Completes the blocks that a message of `length` bytes starts, of which the others
/// are zero.
pub(super) fn pad(bytes: &mut [u8], length: usize) {
    bytes[length] = 0x80;
    let end = bytes.len() - size_of::<u64>();
    bytes[end..].copy_from_slice(&(length as u64 * 8).to_be_bytes());
}

#[inline(always)]
fn bytes_of(state: [u32; 8]) -> Digest {
    let mut digest = [0; 32];
    for (bytes, word) in digest.as_chunks_mut().0.iter_mut().zip(state) {
        *bytes = word.to_be_bytes();
    }
    digest
}

#[cfg(target_arch = "x86_64")]
fn nodes_by_sixteens(pairs: &[[Digest; 2]], level: u8, parents: &mut [Digest]) {
    let (groups, others) = pairs.as_chunks::<WIDTH>();
    let (group_parents, other_parents) = parents.as_chunks_mut::<WIDTH>();
    for (pairs, parents) in groups.iter().zip(group_parents) {
        // SAFETY: `Kernel::all` has found the instructions.
        unsafe { x86::sixteen_nodes(pairs, level, parents) };
    }
    if others.len() < WORTHWHILE {
        return nodes_by_twos(others, level, other_parents);
    }
    let (mut filled, mut found) = ([[[0; 32]; 2]; WIDTH], [[0; 32]; WIDTH]);
    filled[..others.len()].copy_from_slice(others);
    // SAFETY: `Kernel::all` has found the instructions.
    unsafe { x86::sixteen_nodes(&filled, level, &mut found) };
    other_parents.copy_from_slice(&found[..others.len()]);
}

#[cfg(target_arch = "x86_64")]
fn nodes_by_twos(pairs: &[[Digest; 2]], level: u8, parents: &mut [Digest]) {
    for (pairs, parents) in pairs.chunks(2).zip(parents.chunks_mut(2)) {
        let last = parents.len() - 1;
        let children = [pairs[0].each_ref(), pairs[last].each_ref()];
        // SAFETY: `Kernel::all` has found the instructions.
        let found = unsafe { x86::two_nodes(children, [level; 2]) };
        parents.copy_from_slice(&found[..=last]);
    }
}

fn nodes_one_by_one(pairs: &[[Digest; 2]], level: u8, parents: &mut [Digest]) {
    let mut blank = [GenericArray::from([0; 64]); 2];
    let [first, second] = &mut blank;
    [first[0], first[33], second[2], second[3]] = [IMPRINT, IMPRINT, level, 0x80];
    second[60..].copy_from_slice(&(NODE_LEN * 8).to_be_bytes());
    // Written well before they are read, or else the processor waits for the writing.
    let mut messages = [blank; WIDTH];
    for (pairs, parents) in pairs.chunks(WIDTH).zip(parents.chunks_mut(WIDTH)) {
        for ([left, right], [first, second]) in pairs.iter().zip(&mut messages) {
            first[1..33].copy_from_slice(left);
            first[34..].copy_from_slice(&right[..30]);
            second[..2].copy_from_slice(&right[30..]);
        }
        for (message, parent) in messages.iter().zip(parents) {
            let mut state = INITIAL;
            compress256(&mut state, message);
            *parent = bytes_of(state);
        }
    }
}

/// The first byte of an imprint by SHA-256.
const IMPRINT: u8 = 0x01;

/// Length of such an imprint, in bytes.
pub(super) const IMPRINT_LEN: usize = 33;

/// Length of a node's message, in bytes.
const NODE_LEN: u32 = 67;

/// The first 32 bits of the fractional parts of the square roots of 2, 3, 5, …, 19.
const INITIAL: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

/// Those of the cube roots of the first 64 primes, in rows of sixteen rounds.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const ROUNDS: [[u32; 16]; 4] = [
    [
        0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5, 0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5,
        0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3, 0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174,
    ],
    [
        0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc, 0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da,
        0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7, 0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967,
    ],
    [
        0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13, 0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85,
        0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3, 0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070,
    ],
    [
        0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5, 0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3,
        0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208, 0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2,
    ],
];

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Block, Digest, IMPRINT, INITIAL, NODE_LEN, ROUNDS, WIDTH};
    use core::arch::x86_64::*;

    type Vectors<const N: usize> = [__m512i; N];

    /// The digests of sixteen messages of equally many blocks.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn sixteen(messages: [&[Block]; WIDTH]) -> [Digest; WIDTH] {
        let mut state = initial();
        for index in 0..messages[0].len() {
            let mut rows = [_mm512_setzero_si512(); WIDTH];
            for (row, message) in rows.iter_mut().zip(messages) {
                *row = load(&message[index]);
            }
            compress(&mut state, &mut transposed(&rows));
        }
        let mut digests = [[0; 32]; WIDTH];
        store_states(&mut digests, &state);
        digests
    }

    /// The digests of sixteen nodes at `level`.
    ///
    /// ```text
    /// first block   01 | left:32 | 01 | right:30
    /// second block  right:2 | level | 80 | 00… | length in bits:8
    /// ```
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn sixteen_nodes(
        pairs: &[[Digest; 2]; WIDTH],
        level: u8,
        parents: &mut [Digest; WIDTH],
    ) {
        let mut rows = [_mm512_setzero_si512(); WIDTH];
        for (row, pair) in rows.iter_mut().zip(pairs) {
            let [pair] = pair.as_flattened().as_chunks().0 else {
                unreachable!("two digests are as long as a block")
            };
            *row = load(pair);
        }
        let digests = transposed(&rows);
        let constant = |word: u32| _mm512_set1_epi32(word.cast_signed());
        let mut words = [constant(0); 16];
        let marks = [u32::from(IMPRINT) << 24, u32::from(IMPRINT) << 16].map(constant);
        words[0] = _mm512_or_si512(marks[0], _mm512_srli_epi32::<8>(digests[0]));
        for i in 1..8 {
            words[i] = joined::<24, 8>(digests[i - 1], digests[i]);
        }
        words[8] = _mm512_or_si512(marks[1], joined::<24, 16>(digests[7], digests[8]));
        for i in 9..16 {
            words[i] = joined::<16, 16>(digests[i - 1], digests[i]);
        }
        let mut state = initial();
        compress(&mut state, &mut words);
        let mut words = [constant(0); 16];
        let end = constant(u32::from(level) << 8 | 0x80);
        words[0] = _mm512_or_si512(_mm512_slli_epi32::<16>(digests[15]), end);
        words[15] = constant(NODE_LEN * 8);
        compress(&mut state, &mut words);
        store_states(parents, &state);
    }

    /// Words of which the upper bits are the end of `first`, the lower ones the
    /// start of `second`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn joined<const UP: u32, const DOWN: u32>(first: __m512i, second: __m512i) -> __m512i {
        _mm512_or_si512(
            _mm512_slli_epi32::<UP>(first),
            _mm512_srli_epi32::<DOWN>(second),
        )
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn initial() -> Vectors<8> {
        let mut state = [_mm512_setzero_si512(); 8];
        for (vector, word) in state.iter_mut().zip(INITIAL) {
            *vector = _mm512_set1_epi32(word.cast_signed());
        }
        state
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn store_states(digests: &mut [Digest; WIDTH], state: &Vectors<8>) {
        let mut columns = [_mm512_setzero_si512(); WIDTH];
        columns[..8].copy_from_slice(state);
        for (digest, row) in digests.iter_mut().zip(transposed(&columns)) {
            store(digest, _mm512_castsi512_si256(row));
        }
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    fn compress(state: &mut Vectors<8>, words: &mut Vectors<16>) {
        let before = *state;
        let [early @ .., last] = &ROUNDS;
        for constants in early {
            rounds::<true>(state, words, constants);
        }
        rounds::<false>(state, words, last);
        for (word, before) in state.iter_mut().zip(before) {
            *word = _mm512_add_epi32(*word, before);
        }
    }

    /// Sixteen rounds; with `EXTEND` each word is replaced by the one that is
    /// wanted sixteen rounds later.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn rounds<const EXTEND: bool>(
        state: &mut Vectors<8>,
        words: &mut Vectors<16>,
        constants: &[u32; 16],
    ) {
        let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = *state;
        let mut w = *words;
        macro_rules! round {
            ($i:literal: $a:ident $b:ident $c:ident $d:ident $e:ident $f:ident $g:ident $h:ident) => {
                let constant = _mm512_set1_epi32(constants[$i].cast_signed());
                let sum = _mm512_add_epi32(_mm512_add_epi32($h, w[$i]), constant);
                let choice = _mm512_ternarylogic_epi32::<CHOICE>($e, $f, $g);
                let sum = _mm512_add_epi32(_mm512_add_epi32(sum, choice), big::<6, 11, 25>($e));
                let majority = _mm512_ternarylogic_epi32::<MAJORITY>($a, $b, $c);
                $d = _mm512_add_epi32($d, sum);
                $h = _mm512_add_epi32(_mm512_add_epi32(sum, majority), big::<2, 13, 22>($a));
                if EXTEND {
                    let (second, tenth, fifteenth) =
                        (w[($i + 1) % 16], w[($i + 9) % 16], w[($i + 14) % 16]);
                    w[$i] = _mm512_add_epi32(
                        _mm512_add_epi32(w[$i], small::<7, 18, 3>(second)),
                        _mm512_add_epi32(tenth, small::<17, 19, 10>(fifteenth)),
                    );
                }
            };
        }
        round!(0: a b c d e f g h);
        round!(1: h a b c d e f g);
        round!(2: g h a b c d e f);
        round!(3: f g h a b c d e);
        round!(4: e f g h a b c d);
        round!(5: d e f g h a b c);
        round!(6: c d e f g h a b);
        round!(7: b c d e f g h a);
        round!(8: a b c d e f g h);
        round!(9: h a b c d e f g);
        round!(10: g h a b c d e f);
        round!(11: f g h a b c d e);
        round!(12: e f g h a b c d);
        round!(13: d e f g h a b c);
        round!(14: c d e f g h a b);
        round!(15: b c d e f g h a);
        *state = [a, b, c, d, e, f, g, h];
        *words = w;
    }

    // Truth tables of three inputs, for `_mm512_ternarylogic_epi32`.
    const CHOICE: i32 = 0b1100_1010;
    const MAJORITY: i32 = 0b1110_1000;
    const PARITY: i32 = 0b1001_0110;

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn big<const A: i32, const B: i32, const C: i32>(x: __m512i) -> __m512i {
        _mm512_ternarylogic_epi32::<PARITY>(
            _mm512_ror_epi32::<A>(x),
            _mm512_ror_epi32::<B>(x),
            _mm512_ror_epi32::<C>(x),
        )
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn small<const A: i32, const B: i32, const SHIFT: u32>(x: __m512i) -> __m512i {
        _mm512_ternarylogic_epi32::<PARITY>(
            _mm512_ror_epi32::<A>(x),
            _mm512_ror_epi32::<B>(x),
            _mm512_srli_epi32::<SHIFT>(x),
        )
    }

    /// Row `i`, column `j` becomes row `j`, column `i`, of 32 bits each.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn transposed(rows: &Vectors<16>) -> Vectors<16> {
        let mut pairs = *rows;
        for i in (0..16).step_by(2) {
            pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
            pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
        }
        // Quarter `q` of `fours[4 i + k]` is column `4 q + k` of rows `4 i` to `4 i + 3`.
        let mut fours = pairs;
        for i in (0..16).step_by(4) {
            fours[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
            fours[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
            fours[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
            fours[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
        }
        const EVEN: i32 = 0b10_00_10_00;
        const ODD: i32 = 0b11_01_11_01;
        let mut columns = fours;
        for k in 0..4 {
            let upper_even = _mm512_shuffle_i32x4::<EVEN>(fours[k], fours[k + 4]);
            let upper_odd = _mm512_shuffle_i32x4::<ODD>(fours[k], fours[k + 4]);
            let lower_even = _mm512_shuffle_i32x4::<EVEN>(fours[k + 8], fours[k + 12]);
            let lower_odd = _mm512_shuffle_i32x4::<ODD>(fours[k + 8], fours[k + 12]);
            columns[k] = _mm512_shuffle_i32x4::<EVEN>(upper_even, lower_even);
            columns[k + 4] = _mm512_shuffle_i32x4::<EVEN>(upper_odd, lower_odd);
            columns[k + 8] = _mm512_shuffle_i32x4::<ODD>(upper_even, lower_even);
            columns[k + 12] = _mm512_shuffle_i32x4::<ODD>(upper_odd, lower_odd);
        }
        columns
    }

    /// Sixteen big-endian words.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn load(block: &Block) -> __m512i {
        // SAFETY: a block is as long as the register, and alignment does not matter.
        let bytes = unsafe { _mm512_loadu_si512(block.as_ptr().cast()) };
        _mm512_shuffle_epi8(bytes, _mm512_broadcast_i32x4(reversed_words()))
    }

    /// Eight words, big-endian.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn store(digest: &mut Digest, words: __m256i) {
        let bytes = _mm256_shuffle_epi8(words, _mm256_broadcastsi128_si256(reversed_words()));
        // SAFETY: a digest is as long as the register, and alignment does not matter.
        unsafe { _mm256_storeu_si256(digest.as_mut_ptr().cast(), bytes) };
    }

    /// Where each byte comes from if the four bytes of each word swap their order.
    #[inline]
    #[target_feature(enable = "sse2")]
    fn reversed_words() -> __m128i {
        _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203)
    }

    /// The digests of two messages of equally many blocks.
    #[target_feature(enable = "sha,sse4.1,ssse3")]
    pub(super) fn two(messages: [&[Block]; 2]) -> [Digest; 2] {
        let mut states = Pair::initial();
        for (first, second) in messages[0].iter().zip(messages[1]) {
            states.compress([quarters(first), quarters(second)]);
        }
        states.digests()
    }

    /// The digests of two nodes; their blocks are those of [`sixteen_nodes`].
    #[target_feature(enable = "sha,sse4.1,ssse3")]
    pub(super) fn two_nodes(children: [[&Digest; 2]; 2], levels: [u8; 2]) -> [Digest; 2] {
        let mark = _mm_set1_epi8(IMPRINT.cast_signed());
        let length = _mm_set_epi32((NODE_LEN * 8).cast_signed(), 0, 0, 0);
        let zero = _mm_setzero_si128();
        let (mut first, mut second) = ([[zero; 4]; 2], [[zero, zero, zero, length]; 2]);
        for s in 0..2 {
            let [left, right] = children[s];
            let end = _mm_set_epi64x(0, 0x8000 | i64::from(levels[s]));
            let [[l0, l1], [r0, r1]] = [halves(left), halves(right)];
            first[s] = [
                _mm_alignr_epi8::<15>(l0, mark),
                _mm_alignr_epi8::<15>(l1, l0),
                _mm_alignr_epi8::<14>(r0, _mm_alignr_epi8::<1>(mark, l1)),
                _mm_alignr_epi8::<14>(r1, r0),
            ]
            .map(|bytes| big_endian(bytes));
            second[s][0] = big_endian(_mm_alignr_epi8::<14>(end, r1));
        }
        let mut states = Pair::initial();
        states.compress(first);
        states.compress(second);
        states.digests()
    }

    /// The states of two messages, each as the words a b e f and c d g h.
    struct Pair {
        abef: [__m128i; 2],
        cdgh: [__m128i; 2],
    }

    impl Pair {
        #[inline]
        #[target_feature(enable = "sse2")]
        fn initial() -> Self {
            let [a, b, c, d, e, f, g, h] = INITIAL.map(u32::cast_signed);
            Self {
                abef: [_mm_set_epi32(a, b, e, f); 2],
                cdgh: [_mm_set_epi32(c, d, g, h); 2],
            }
        }

        #[inline]
        #[target_feature(enable = "sha,sse4.1,ssse3")]
        fn compress(&mut self, mut words: [[__m128i; 4]; 2]) {
            let Self { mut abef, mut cdgh } = *self;
            for (row, constants) in ROUNDS.iter().enumerate() {
                let constants = constants.as_chunks::<4>().0;
                for i in 0..4 {
                    let [k0, k1, k2, k3] = constants[i].map(u32::cast_signed);
                    let constants = _mm_set_epi32(k3, k2, k1, k0);
                    for s in 0..2 {
                        let sums = _mm_add_epi32(words[s][i], constants);
                        cdgh[s] = _mm_sha256rnds2_epu32(cdgh[s], abef[s], sums);
                        let sums = _mm_shuffle_epi32::<0b00_00_11_10>(sums);
                        abef[s] = _mm_sha256rnds2_epu32(abef[s], cdgh[s], sums);
                        if row < 3 {
                            words[s][i] = extended(&words[s], i);
                        }
                    }
                }
            }
            for s in 0..2 {
                self.abef[s] = _mm_add_epi32(self.abef[s], abef[s]);
                self.cdgh[s] = _mm_add_epi32(self.cdgh[s], cdgh[s]);
            }
        }

        #[inline]
        #[target_feature(enable = "sse4.1,ssse3")]
        fn digests(&self) -> [Digest; 2] {
            [0, 1].map(|s| state_bytes(self.abef[s], self.cdgh[s]))
        }
    }

    /// The four words that take the place of `words[i]`, the oldest.
    #[inline]
    #[target_feature(enable = "sha,ssse3")]
    fn extended(words: &[__m128i; 4], i: usize) -> __m128i {
        let [first, second, third, fourth] = [
            words[i],
            words[(i + 1) % 4],
            words[(i + 2) % 4],
            words[(i + 3) % 4],
        ];
        let seven_before = _mm_alignr_epi8::<4>(fourth, third);
        let sums = _mm_add_epi32(_mm_sha256msg1_epu32(first, second), seven_before);
        _mm_sha256msg2_epu32(sums, fourth)
    }

    /// Sixteen big-endian words, four to a register.
    #[inline]
    #[target_feature(enable = "ssse3")]
    fn quarters(block: &Block) -> [__m128i; 4] {
        let mut words = [_mm_setzero_si128(); 4];
        for (words, quarter) in words.iter_mut().zip(block.as_chunks().0) {
            *words = big_endian(load_bytes(quarter));
        }
        words
    }

    /// The bytes of a digest in their order.
    #[inline]
    #[target_feature(enable = "sse2")]
    fn halves(digest: &Digest) -> [__m128i; 2] {
        let mut bytes = [_mm_setzero_si128(); 2];
        for (bytes, half) in bytes.iter_mut().zip(digest.as_chunks().0) {
            *bytes = load_bytes(half);
        }
        bytes
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    fn load_bytes(bytes: &[u8; 16]) -> __m128i {
        // SAFETY: 16 bytes are as long as the register, and alignment does not matter.
        unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "ssse3")]
    fn big_endian(bytes: __m128i) -> __m128i {
        _mm_shuffle_epi8(bytes, reversed_words())
    }

    #[inline]
    #[target_feature(enable = "sse4.1,ssse3")]
    fn state_bytes(abef: __m128i, cdgh: __m128i) -> Digest {
        let mut digest = [0; 32];
        // Lanes from the lowest on: a b e f and g h c d.
        let abef = _mm_shuffle_epi32::<0b00_01_10_11>(abef);
        let ghcd = _mm_shuffle_epi32::<0b10_11_00_01>(cdgh);
        let abcd = _mm_blend_epi16::<0b1111_0000>(abef, ghcd);
        let efgh = _mm_alignr_epi8::<8>(ghcd, abef);
        let halves = digest.as_chunks_mut::<16>().0;
        for (half, words) in halves.iter_mut().zip([abcd, efgh]) {
            let bytes = big_endian(words);
            // SAFETY: 16 bytes are as long as the register, and alignment does not matter.
            unsafe { _mm_storeu_si128(half.as_mut_ptr().cast(), bytes) };
        }
        digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::batch::padded;
    use sha2::{Digest as _, Sha256};

    /// Bytes without a pattern, the same in every run.
    fn noise(seed: u64) -> impl Iterator<Item = u8> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        core::iter::repeat_with(move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
    }

    /// Digests of `count` messages of `length` bytes, whose blocks start anywhere in
    /// memory.
    #[track_caller]
    fn check(kernel: Kernel, count: usize, length: usize) {
        let message = |i: usize| -> Vec<u8> {
            let seed = (count << 32 | length << 8 | i) as u64;
            noise(seed).take(length).collect()
        };
        let messages: Vec<_> = (0..count).map(message).collect();
        let padded: Vec<_> = messages.iter().flat_map(|m| padded(m)).collect();
        let shift = (count + length) % 64;
        let memory = [&vec![0; shift], padded.as_flattened()].concat();
        let blocks = memory[shift..].as_chunks().0;
        let mut digests = vec![[0; 32]; count];
        kernel.digest(blocks, blocks.len() / count, &mut digests);
        for (message, digest) in messages.iter().zip(digests) {
            assert_eq!(
                digest[..],
                Sha256::digest(message)[..],
                "{kernel}, {count} of {length} bytes"
            );
        }
    }

    /// As many lanes as there are, filled and not, and then some.
    const COUNTS: core::ops::RangeInclusive<usize> = 1..=2 * WIDTH + 1;

    #[test]
    fn agrees_with_sha2_at_every_length_in_any_number_of_lanes() {
        for kernel in Kernel::all() {
            for length in 0..=300 {
                COUNTS.for_each(|count| check(kernel, count, length));
            }
            for length in [4095, 4096, 65_535] {
                check(kernel, WIDTH, length);
            }
        }
    }

    #[track_caller]
    fn check_nodes(kernel: Kernel, count: usize, level: u8) {
        let seed = (count << 8 | usize::from(level)) as u64;
        let (shift, length) = (count % 64, 64 * count);
        let memory: Vec<_> = noise(seed).take(shift + length).collect();
        let pairs = memory[shift..].as_chunks().0.as_chunks().0;
        // One more before and after, to see that they are left alone.
        let mut parents = vec![[7; 32]; count + 2];
        kernel.nodes(pairs, level, &mut parents[1..=count]);
        for ([left, right], parent) in pairs.iter().zip(&parents[1..]) {
            let message = [&[1][..], left, &[1], right, &[level]].concat();
            let expected = Sha256::digest(message);
            assert_eq!(parent[..], expected[..], "{kernel}, {count} at {level}");
        }
        assert_eq!([parents[0], parents[count + 1]], [[7; 32]; 2]);
    }

    #[test]
    fn nodes_agree_with_sha2_in_any_number_of_lanes() {
        for kernel in Kernel::all() {
            for count in COUNTS {
                (0..=255).for_each(|level| check_nodes(kernel, count, level));
            }
        }
    }

    #[test]
    fn two_nodes_agree_with_sha2_at_levels_of_their_own() {
        for level in 0..=255 {
            let noise: Vec<_> = noise(level.into()).take(4 * 32 + 3).collect();
            let [a, b, c, d] = noise[3..].as_chunks().0 else {
                panic!("four digests")
            };
            let pairs = [([a, b], level), ([c, d], !level)];
            let expected = pairs.map(|([left, right], level)| {
                let message = [&[1][..], left, &[1], right, &[level]].concat();
                Digest::from(Sha256::digest(message))
            });
            for kernel in Kernel::all().filter(|kernel| kernel.0 != Width::One) {
                let found = kernel.two_nodes([[a, b], [c, d]], [level, !level]);
                assert_eq!(found, Some(expected), "{kernel} at {level}");
            }
        }
    }

    #[test]
    fn no_message_no_digest() {
        for kernel in Kernel::all() {
            kernel.digest(&[], 2, &mut []);
            kernel.nodes(&[], 2, &mut []);
        }
    }

    #[test]
    fn the_last_kernel_runs_everywhere() {
        assert_eq!(Kernel::all().last(), Some(Kernel(Width::One)));
    }

    #[test]
    #[should_panic(expected = "left == right")]
    fn blocks_that_belong_to_no_message_are_refused() {
        Kernel::best().digest(&[[0; 64]; 3], 2, &mut [[0; 32]]);
    }

    #[test]
    #[should_panic(expected = "left == right")]
    fn pairs_without_parents_are_refused() {
        Kernel::best().nodes(&[[[0; 32]; 2]; 3], 2, &mut [[0; 32]; 2]);
    }
}
