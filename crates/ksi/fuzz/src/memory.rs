//! What decoders may take of memory, asserted with an allocator that counts.

use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Bytes that may be taken whatever the input: hashing in batches, RSA.
const FLOOR: usize = 256 << 10;

/// Bytes that may be taken for each byte of input. The worst is a text of one
/// byte in an element of three, 24 bytes in a list that grows by doubling.
const FACTOR: usize = 32;

/// Runs `work`, which may take some memory and some more for each byte of `input`.
#[track_caller]
pub fn bounded<T>(input: &[u8], work: impl FnOnce() -> T) -> T {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let done = work();
    let peak = MEMORY.peak_usage().saturating_sub(before);
    assert!(
        peak <= FLOOR + FACTOR * input.len(),
        "{peak} bytes of memory for {} of input",
        input.len()
    );
    done
}
