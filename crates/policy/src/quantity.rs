//! Kubernetes quantities as exact integers.

use std::cmp::Ordering;

/// A positive quantity in thousandths of its unit: `1` is 1000, `250m` is 250, `1Ki` is 1,024,000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantity(u128);

/// Why a text is no positive quantity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuantityError(pub String);

impl Quantity {
    /// Reads what Kubernetes writes: digits with an optional fraction and one of `m k M G T P E Ki Mi Gi Ti Pi Ei`, or an exponent. More
    /// digits than thousandths are rounded up, as Kubernetes does.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        let error = || QuantityError(format!("{text:?} is not a positive quantity"));
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, suffix) = text.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || number.len() > 32 {
            return Err(error());
        }
        let digits: u128 = format!("{whole}{fraction}").parse().map_err(|_| error())?;
        let (numerator, denominator) = scale(suffix).ok_or_else(error)?;
        let numerator = digits.checked_mul(numerator).and_then(|value| value.checked_mul(1000)).ok_or_else(error)?;
        let fraction_digits = u32::try_from(fraction.len()).map_err(|_| error())?;
        let denominator = 10_u128.checked_pow(fraction_digits).and_then(|value| value.checked_mul(denominator)).ok_or_else(error)?;
        match numerator.cmp(&0) {
            Ordering::Equal => Err(error()),
            _ => Ok(Self(numerator.div_ceil(denominator))),
        }
    }

    /// A whole number of units.
    pub const fn of(units: u64) -> Self {
        Self(units as u128 * 1000)
    }

    /// So many thousandths of a unit.
    pub const fn of_milli(thousandths: u64) -> Self {
        Self(thousandths as u128)
    }

    /// Thousandths of the unit, at most `u64::MAX`.
    pub fn milli(self) -> u64 {
        u64::try_from(self.0).unwrap_or(u64::MAX)
    }

    /// Whole units, rounded up, at most `u64::MAX`.
    pub fn units(self) -> u64 {
        u64::try_from(self.0.div_ceil(1000)).unwrap_or(u64::MAX)
    }
}

fn scale(suffix: &str) -> Option<(u128, u128)> {
    let power = |base: u128, exponent: u32| base.checked_pow(exponent).map(|value| (value, 1));
    match suffix {
        "" => Some((1, 1)),
        "m" => Some((1, 1000)),
        "k" => power(1000, 1),
        "M" => power(1000, 2),
        "G" => power(1000, 3),
        "T" => power(1000, 4),
        "P" => power(1000, 5),
        "E" => power(1000, 6),
        "Ki" => power(1024, 1),
        "Mi" => power(1024, 2),
        "Gi" => power(1024, 3),
        "Ti" => power(1024, 4),
        "Pi" => power(1024, 5),
        "Ei" => power(1024, 6),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let value = 10_u128.checked_pow(exponent.unsigned_abs()).filter(|_| exponent.abs() <= 18)?;
            Some(if exponent < 0 { (1, value) } else { (value, 1) })
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::Quantity;

    #[rstest]
    #[case("1", 1000)]
    #[case("250m", 250)]
    #[case("0.5", 500)]
    #[case(".5", 500)]
    #[case("1.", 1000)]
    #[case("0.0001", 1)]
    #[case("64Mi", 64 * 1024 * 1024 * 1000)]
    #[case("1.5Gi", 1536 * 1024 * 1024 * 1000)]
    #[case("2k", 2_000_000)]
    #[case("1e3", 1_000_000)]
    #[case("5E-1", 500)]
    fn reads(#[case] text: &str, #[case] milli: u64) {
        assert_eq!(Quantity::parse(text).unwrap().milli(), milli);
    }

    #[rstest]
    #[case("")]
    #[case("0")]
    #[case("-1")]
    #[case("1.2.3")]
    #[case("Mi")]
    #[case("1 Mi")]
    #[case("1e99")]
    #[case("1mi")]
    #[case("99999999999999999999999999999999999999999")]
    fn refuses(#[case] text: &str) {
        assert!(Quantity::parse(text).is_err());
    }
}
