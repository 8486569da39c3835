//! What the kernels that look sums up share, on every instruction set: a row tile of nibbles indexes tables of 16 entries, which
//! [`crate::tables`] makes from the activations. A layout is a [`Layout`], an instruction set's loops over it a [`Method`], and a
//! kernel a method with tables of one width.

use std::marker::PhantomData;
use std::ops::Range;

use crate::activation::QuantizedActivations;
use crate::isa::Token;
use crate::kernel::{KernelInfo, PackedMatrix, Prepared, TernaryKernel};
use crate::layout::{bitplane, tl1, tl2};
use crate::tables::{self, Table};
use crate::team::Team;
use crate::trit::TernaryMatrix;

/// A layout whose nibbles index tables.
pub trait Layout: Send + Sync + 'static {
    /// Its name, as headed in LAYOUTS.md.
    const NAME: &'static str;
    /// Packed bits per weight, without padding.
    const BITS_PER_WEIGHT: f32;
    /// Whose idea it is.
    const SOURCE: &'static str;
    /// Columns that share a table.
    const GROUP: usize;
    /// Columns of a tile.
    const TILE_K: usize;
    /// Rows of a tile.
    const TILE_ROWS: usize;

    /// Lays out `w`.
    fn pack(w: &TernaryMatrix) -> PackedMatrix;

    /// Makes the tables.
    fn fill<const H: usize>(x: &QuantizedActivations, out: &mut Prepared);
}

macro_rules! layouts {
    ($($(#[$doc:meta])* $name:ident: $module:ident, $bits:expr, $source:literal;)*) => {$(
        $(#[$doc])*
        pub struct $name;

        impl Layout for $name {
            const NAME: &'static str = stringify!($module);
            const BITS_PER_WEIGHT: f32 = $bits;
            const SOURCE: &'static str = $source;
            const GROUP: usize = $module::GROUP;
            const TILE_K: usize = $module::TILE_K;
            const TILE_ROWS: usize = $module::TILE_ROWS;

            fn pack(w: &TernaryMatrix) -> PackedMatrix {
                $module::pack(w)
            }

            fn fill<const H: usize>(x: &QuantizedActivations, out: &mut Prepared) {
                tables::fill::<{ $module::GROUP }, H>(&$module::CODES, x, $module::TILE_K, out);
            }
        }
    )*};
}

layouts! {
    /// A lookup per two weights.
    Tl1: tl1, 2.0, "bitnet.cpp TL1 (arXiv 2502.11880), rows interleaved";
    /// A lookup and a sign per three weights.
    Tl2: tl2, 5.0 / 3.0, "bitnet.cpp TL2 (arXiv 2502.11880), rows interleaved";
    /// A lookup per four weights of a bit plane.
    Bitplane: bitplane, 2.0, "T-MAC (arXiv 2407.00088), planes of +1 and -1";
}

/// The loops of an instruction set over a layout.
pub trait Method: Send + Sync + 'static {
    /// Proof that the CPU has it.
    type Proof: Token;
    /// The layout.
    type Layout: Layout;
    /// The exact kernel's name, and the lossy one's where there is one.
    const NAMES: [&'static str; 2];
    /// The exact kernel's summary.
    const SUMMARY: &'static str;

    /// As [`TernaryKernel::compute`], with tables of `H` bytes an entry: 2 are exact, 1 is lossy and leaves the sums unscaled.
    ///
    /// # Safety
    /// The CPU has the instruction set.
    unsafe fn compute<const H: usize>(w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]);
}

/// The kernel of a method with tables of `H` bytes an entry: exact with 2, requantised to int8 with 1.
pub struct Lookup<M: Method, const H: usize>(
    #[allow(dead_code, reason = "the proof of support")] M::Proof,
    PhantomData<M>,
);

impl<M: Method, const H: usize> Lookup<M, H> {
    /// What it is.
    pub const INFO: &'static KernelInfo = &KernelInfo {
        name: M::NAMES[2 - H],
        summary: if H == 2 { M::SUMMARY } else { "the same, tables requantised to int8" },
        features: M::Proof::FEATURES,
        layout: M::Layout::NAME,
        bits_per_weight: M::Layout::BITS_PER_WEIGHT,
        row_tile: M::Layout::TILE_ROWS,
        exactness: tables::exactness(M::Layout::GROUP, H),
        source: M::Layout::SOURCE,
    };

    /// The kernel, where the CPU has the instruction set.
    pub fn new() -> Option<Self> {
        M::Proof::detect().map(|proof| Self(proof, PhantomData))
    }
}

impl<M: Method, const H: usize> TernaryKernel for Lookup<M, H> {
    fn info(&self) -> &'static KernelInfo {
        Self::INFO
    }

    fn pack(&self, w: &TernaryMatrix) -> PackedMatrix {
        M::Layout::pack(w)
    }

    fn prepare(&self, _: &Team, x: &QuantizedActivations, out: &mut Prepared) {
        M::Layout::fill::<H>(x, out);
    }

    fn compute(&self, w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
        let groups = w.k.next_multiple_of(M::Layout::TILE_K) / M::Layout::GROUP;
        assert_eq!(x.stride, groups * size_of::<Table<H>>(), "the input was prepared for another k");
        assert_eq!(acc.len(), x.m * rows.len(), "acc does not hold m * rows values");
        // SAFETY: `self` holds the proof of the instruction set, which only run-time detection hands out.
        unsafe { M::compute::<H>(w, x, rows, acc) };
        tables::rescale::<H>(x, acc);
    }
}
