//! What the table kernels share: `tbl` looks 16 rows up in a table of 16 bytes. The low and the high byte of an entry are looked up
//! with the same index and joined by a byte interleave; the sums are int16, widened before they can overflow.

use std::arch::aarch64::*;

use crate::tables::{BIAS, Table};

/// Rows looked up at once.
pub const ROWS: usize = 16;

/// The bytes of 16 rows' entries: the low halves, and the high ones where there are any.
#[derive(Clone, Copy)]
pub struct Bytes {
    low: uint8x16_t,
    high: uint8x16_t,
}

/// Looks up 16 indices below 16.
#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn look<const H: usize>(table: &Table<H>, codes: uint8x16_t) -> Bytes {
    let mut halves = [vdupq_n_u8(0); 2];
    for h in 0..H {
        halves[h] = vqtbl1q_u8(load(&table[h]), codes);
    }
    Bytes { low: halves[0], high: halves[1] }
}

impl Bytes {
    /// `-entry - 1` in the rows where `flip` is 0xFF: the complement of both halves.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(crate) fn complement<const H: usize>(self, flip: uint8x16_t) -> Self {
        let high = if H == 2 { veorq_u8(self.high, flip) } else { self.high };
        Self { low: veorq_u8(self.low, flip), high }
    }

    /// Small numbers without a high half.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(crate) fn small(low: uint8x16_t) -> Self {
        Self { low, high: vdupq_n_u8(0) }
    }

    /// The entries as int16: rows 0 to 7, rows 8 to 15.
    #[inline]
    #[target_feature(enable = "neon")]
    fn joined(self) -> [int16x8_t; 2] {
        [vreinterpretq_s16_u8(vzip1q_u8(self.low, self.high)), vreinterpretq_s16_u8(vzip2q_u8(self.low, self.high))]
    }
}

/// The sums of 16 rows.
#[derive(Clone, Copy)]
pub struct Sums([int16x8_t; 2]);

impl Sums {
    /// Nothing yet.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(crate) fn new() -> Self {
        Self([vdupq_n_s16(0); 2])
    }

    /// Adds an entry to every row.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(crate) fn add(&mut self, bytes: Bytes) {
        let entries = bytes.joined();
        for i in 0..2 {
            self.0[i] = vaddq_s16(self.0[i], entries[i]);
        }
    }

    /// Widens the sums of `n_groups` entries and adds them to `acc`. Tables of one byte are biased (see [`crate::tables`]).
    #[inline]
    #[target_feature(enable = "neon")]
    pub(crate) fn widen<const H: usize>(self, n_groups: usize, acc: &mut [i32; ROWS]) {
        let bias = vdupq_n_s16(if H == 1 { (n_groups * usize::from(BIAS)) as i16 } else { 0 });
        for (sums, acc) in self.0.into_iter().zip(acc.as_chunks_mut().0) {
            // A lossy sum with its bias may pass int16; modulo 2^16 the difference is right.
            add_to(acc, vsubq_s16(sums, bias));
        }
    }

    /// Widens, of every two rows' sums, the first minus the second, and adds these differences to `acc`.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(crate) fn widen_differences(self, acc: &mut [i32; ROWS / 2]) {
        let [a, b] = self.0;
        add_to(acc, vsubq_s16(vuzp1q_s16(a, b), vuzp2q_s16(a, b)));
    }
}

/// Adds 8 int16 to 8 int32.
#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn add_to(acc: &mut [i32; 8], values: int16x8_t) {
    // SAFETY: the array holds the 32 bytes that are read and written.
    unsafe {
        let (low, high) = (vld1q_s32(acc.as_ptr()), vld1q_s32(acc.as_ptr().add(4)));
        vst1q_s32(acc.as_mut_ptr(), vaddw_s16(low, vget_low_s16(values)));
        vst1q_s32(acc.as_mut_ptr().add(4), vaddw_high_s16(high, values));
    }
}

/// The low nibbles, the high nibbles.
#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn nibbles(codes: uint8x16_t) -> [uint8x16_t; 2] {
    [vandq_u8(codes, vdupq_n_u8(15)), vshrq_n_u8::<4>(codes)]
}

/// Quarter `quarter` of 64 bytes.
#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn load_quarter(bytes: &[u8; 64], quarter: usize) -> uint8x16_t {
    load(&bytes.as_chunks().0[quarter])
}

/// 16 bytes.
#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn load(bytes: &[u8; 16]) -> uint8x16_t {
    // SAFETY: the array holds the 16 bytes that are read.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}
