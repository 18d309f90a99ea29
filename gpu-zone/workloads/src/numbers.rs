//! Input data that looks random and is the same in every run.

/// The generator of Knuth's MMIX.
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    /// `n` numbers from -1 to 1, each exact in single precision.
    pub(crate) fn floats(&mut self, n: usize) -> Vec<f32> {
        let float =
            |bits: u64| f32::from(u16::try_from(bits & 0x7fff).unwrap_or(0)) / 16384.0 - 1.0;
        (0..n).map(|_| float(self.next())).collect()
    }

    /// `n` bytes.
    pub(crate) fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}

/// The largest difference between what the device and what the CPU computed.
pub(crate) fn largest_difference(got: &[f32], wanted: impl IntoIterator<Item = f64>) -> f64 {
    let differences = got.iter().zip(wanted).map(|(got, wanted)| (f64::from(*got) - wanted).abs());
    // `f64::max` would drop a NaN, and a NaN is the largest difference there is.
    differences
        .fold(0.0, |largest, next| if next > largest || next.is_nan() { next } else { largest })
}

/// A sum over all results, to compare runs with.
pub(crate) fn checksum(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_wrong_number_passes_for_a_right_one() {
        assert_eq!(largest_difference(&[1.0, 2.5, 3.0], [1.0, 2.0, 3.25]), 0.5);
        assert!(largest_difference(&[1.0, f32::NAN, 3.0], [1.0, 2.0, 3.0]).is_nan());
        assert!(largest_difference(&[f32::NAN, 9.0], [1.0, 2.0]).is_nan());
        assert!(largest_difference(&[f32::INFINITY], [1.0]).is_infinite());
    }

    #[test]
    fn input_is_the_same_in_every_run_and_not_constant() {
        let floats = Numbers::new(1).floats(1000);
        assert_eq!(floats, Numbers::new(1).floats(1000));
        assert!(floats.iter().all(|x| (-1.0..=1.0).contains(x)));
        assert!(checksum(&floats).abs() < 100.0);
        let mut bytes = Numbers::new(2).bytes(5000);
        bytes.sort_unstable();
        bytes.dedup();
        assert_eq!(bytes.len(), 256);
    }
}
