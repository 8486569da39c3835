//! Ternary GEMM kernels, the oracle that defines them, and the dense kernels of the baselines.
//!
//! This crate is arithmetic only: it opens no file, knows no model and prints nothing. The way in is
//! [`registry`], the one list of ternary kernels, and [`driver::Linear`], a weight matrix packed for one of them.
//!
//! Names are the same everywhere: `n` output rows, `k` inputs, `m` tokens.

pub mod activation;
pub mod arch;
pub mod bytes;
pub mod dense;
pub mod dispatch;
pub mod driver;
pub mod isa;
pub mod kernel;
pub mod lanes;
pub mod layout;
pub mod ops;
pub mod oracle;
pub mod probe;
pub mod registry;
pub mod screen;
pub mod tables;
pub mod team;
pub mod trit;
pub mod verify;

pub use activation::QuantizedActivations;
pub use bytes::{AlignedBytes, Bytes};
pub use dense::{DenseMatrix, DenseType};
pub use dispatch::{Dispatch, Pair};
pub use driver::{Linear, Weights};
pub use kernel::{Exactness, KernelInfo, PackedMatrix, Prepared, TernaryKernel, Unsupported};
pub use screen::Screen;
pub use team::{Pool, Team};
pub use trit::TernaryMatrix;
