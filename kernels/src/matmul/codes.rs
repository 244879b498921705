//! What codes stand for, in the forms that the kernels want: tables of f32, tables of small integers,
//! bit patterns. The definition they are tested against is `reference::decode`.

use half::f16;

use super::format::{AffineFormat, Code};

/// Values of E2M1 codes.
pub(super) const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Values of IQ4_NL codes.
pub(super) const IQ4_NL: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0,
    89.0, 113.0,
];

/// Codes of groups as integers: `value = unit * (number - zero)`, where a number is the code itself,
/// or what a table has for it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Integers {
    /// Numbers of the 16 codes of a nibble; none where the code is the number.
    pub(super) table: Option<[u8; 16]>,
    /// What is taken off; none where groups have biases instead.
    pub(super) zero: Option<i32>,
    /// Value of a number's unit, a power of two.
    pub(super) unit: f32,
    /// Whether numbers may exceed 127.
    pub(super) wide: bool,
}

impl From<AffineFormat> for Integers {
    fn from(format: AffineFormat) -> Self {
        let zero = format.zero_point.map(i32::from);
        Self { table: None, zero, unit: 1.0, wide: format.bits > 4 }
    }
}

impl Integers {
    /// The codes as integers, if they are such.
    pub(crate) fn of(code: Code) -> Option<Self> {
        let (values, zero, unit) = match code {
            Code::E2m1 => (E2M1, 12, 0.5),
            Code::Iq4Nl => (IQ4_NL, 127, 1.0),
            Code::E4m3 => return None,
        };
        // Exact: every value is a whole number of units, and none is below `-zero`.
        let table = values.map(|value| (value / unit + zero as f32) as u8);
        let wide = table.iter().any(|number| *number > 127);
        Some(Self { table: Some(table), zero: Some(zero), unit, wide })
    }
}

/// The value of a code; not a number is what its group's scale makes it.
pub(super) fn decode(code: Code, byte: u8) -> f32 {
    match code {
        Code::E2m1 => E2M1[usize::from(byte & 0xf)],
        Code::Iq4Nl => IQ4_NL[usize::from(byte & 0xf)],
        Code::E4m3 => {
            // Sign, exponent and fraction in the places they have in an f16, whose exponents are
            // larger by 8.
            let byte = u16::from(byte);
            f16::from_bits((byte & 0x80) << 8 | (byte & 0x7f) << 7).to_f32() * 256.0
        }
    }
}
