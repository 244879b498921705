//! Random numbers that depend on a key and a counter alone (SplitMix64, Steele et al. 2014), so that
//! neither the batch nor a preemption changes a draw.

/// 2^64 divided by the golden ratio: the step of SplitMix64.
const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// A number in [0, 1) with 53 random bits: number `counter` of the stream `seed`.
pub(super) fn uniform(seed: u64, counter: u64) -> f64 {
    // Mixed first, or the streams of neighbouring seeds would be one stream, shifted.
    let state = mix(seed).wrapping_add(GAMMA.wrapping_mul(counter.wrapping_add(1)));
    (mix(state) >> 11) as f64 * (-53_f64).exp2()
}

/// The finalizer of SplitMix64.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_of_key_zero_is_that_of_the_published_generator() {
        // mix(0) is 0, so seed 0 gives SplitMix64's own first outputs.
        let published = [0xE220_A839_7B1D_CDAF_u64, 0x6E78_9E6A_A1B9_65F4, 0x06C4_5D18_8009_454F];
        for (counter, output) in published.into_iter().enumerate() {
            let expected = (output >> 11) as f64 / (1_u64 << 53) as f64;
            assert_eq!(uniform(0, counter as u64).to_bits(), expected.to_bits());
        }
    }

    #[test]
    fn neighbouring_seeds_share_no_stream() {
        let stream = |seed: u64| (0..64).map(move |i| uniform(seed, i).to_bits());
        let first: Vec<_> = stream(1).collect();
        assert!(stream(2).all(|x| !first.contains(&x)));
        assert!(stream(1_u64.wrapping_add(GAMMA)).all(|x| !first.contains(&x)));
    }
}
