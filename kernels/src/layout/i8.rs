//! Layout `i8`: one byte per weight, row-major, no padding.

use crate::bytes::AlignedBytes;
use crate::kernel::PackedMatrix;
use crate::trit::TernaryMatrix;

/// Copies the trits of `w`.
pub fn pack(w: &TernaryMatrix) -> PackedMatrix {
    let mut data = AlignedBytes::zeroed(w.n() * w.k());
    data.as_i8_mut().copy_from_slice(w.trits());
    PackedMatrix { n: w.n(), k: w.k(), data: data.into() }
}
