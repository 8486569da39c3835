//! The one list of ternary kernels. Tests, benches, the command line and the reports iterate it.

#[cfg(target_arch = "aarch64")]
use crate::arch::aarch64;
use crate::arch::scalar;
#[cfg(target_arch = "x86_64")]
use crate::arch::x86_64;
use crate::isa::Feature;
use crate::kernel::{KernelInfo, TernaryKernel, Unsupported};

/// A line of a list: what the kernel is, and the kernel itself where it can run. There are two lists, one of ternary kernels
/// (here) and one of dense ones ([`crate::dense::DENSE_KERNELS`]).
pub struct Entry<I: 'static, K: ?Sized + 'static> {
    /// What it is, known on every CPU.
    pub info: &'static I,
    pub(crate) features: &'static [Feature],
    pub(crate) construct: fn() -> Option<&'static K>,
}

impl<I, K: ?Sized> Entry<I, K> {
    /// The kernel, or why it cannot run here.
    pub fn kernel(&self) -> Result<&'static K, Unsupported> {
        (self.construct)().ok_or_else(|| {
            Unsupported::MissingFeatures(self.features.iter().copied().filter(|f| !f.is_detected()).collect())
        })
    }
}

/// Declares a list from `path::to::Kernel;` lines. A kernel type has `const INFO` and `fn new() -> Option<Self>`, which runs
/// once.
macro_rules! kernels {
    ($(#[$doc:meta])* $list:ident: $info:ty, $kernel:path; $($(#[$attribute:meta])* $type:ty;)*) => {
        $(#[$doc])*
        pub static $list: &[$crate::registry::Entry<$info, dyn $kernel>] = &[$($(#[$attribute])* $crate::registry::Entry {
            info: <$type>::INFO,
            features: <$type>::INFO.features,
            construct: || {
                static KERNEL: std::sync::OnceLock<Option<$type>> = std::sync::OnceLock::new();
                KERNEL.get_or_init(<$type>::new).as_ref().map(|kernel| kernel as &'static dyn $kernel)
            },
        },)*];
    };
}
pub(crate) use kernels;

kernels! {
    /// Every ternary kernel built for this architecture, slowest first.
    KERNELS: KernelInfo, TernaryKernel;
    scalar::i8_naive::I8Naive;
    scalar::i8_blocked::I8Blocked;
    scalar::vlut_add::VlutAdd;
    scalar::bitplane_lookup::BitplaneLookup;
    scalar::tl1_lookup::Tl1LookupLossy;
    scalar::tl1_lookup::Tl1Lookup;
    scalar::tl2_lookup::Tl2LookupLossy;
    scalar::tl2_lookup::Tl2Lookup;
    scalar::tq1_unpack::Tq1Unpack;
    scalar::tq2_unpack::Tq2Unpack;
    scalar::b3_unpack::B3Unpack;
    scalar::t5_unpack::T5Unpack;
    scalar::i2s_unpack::I2sUnpack;
    #[cfg(target_arch = "x86_64")]
    x86_64::avx2::bitplane_pshufb::BitplanePshufb;
    #[cfg(target_arch = "x86_64")]
    x86_64::avx2::tl1_pshufb::Tl1PshufbLossy;
    #[cfg(target_arch = "x86_64")]
    x86_64::avx2::tl1_pshufb::Tl1Pshufb;
    #[cfg(target_arch = "x86_64")]
    x86_64::avx2::tl2_pshufb::Tl2PshufbLossy;
    #[cfg(target_arch = "x86_64")]
    x86_64::avx2::tl2_pshufb::Tl2Pshufb;
    #[cfg(target_arch = "x86_64")]
    x86_64::avx2::vlut_add::VlutAdd;
    #[cfg(target_arch = "x86_64")]
    x86_64::avx2::tq1_maddubs::Tq1Maddubs;
    #[cfg(target_arch = "x86_64")]
    x86_64::avx2::tq2_maddubs::Tq2Maddubs;
    #[cfg(target_arch = "x86_64")]
    x86_64::avx2::b3_maddubs::B3Maddubs;
    #[cfg(target_arch = "x86_64")]
    x86_64::avx2::t5_maddubs::T5Maddubs;
    #[cfg(target_arch = "x86_64")]
    x86_64::avx512bw::tl2_pshufb::Tl2PshufbLossy;
    #[cfg(target_arch = "x86_64")]
    x86_64::avx512bw::tl2_pshufb::Tl2Pshufb;
    #[cfg(target_arch = "x86_64")]
    x86_64::avx512bw::vlut_add::VlutAdd;
    #[cfg(target_arch = "x86_64")]
    x86_64::avx2::i2s_maddubs::I2sMaddubs;
    #[cfg(target_arch = "x86_64")]
    x86_64::avx2::bitplane_vlut::BitplaneVlut;
    #[cfg(target_arch = "x86_64")]
    x86_64::avxvnni::i2s_dpbusd::I2sDpbusd;
    #[cfg(target_arch = "x86_64")]
    x86_64::avx512vnni::b3_dpbusd::B3Dpbusd;
    #[cfg(target_arch = "x86_64")]
    x86_64::avx512vnni::i2s_dpbusd::I2sDpbusd;
    #[cfg(target_arch = "x86_64")]
    x86_64::avx512vbmi::t5_dpbusd::T5Dpbusd;
    #[cfg(target_arch = "x86_64")]
    x86_64::amx::t5_tdpbssd::T5Tdpbssd;
    #[cfg(target_arch = "aarch64")]
    aarch64::neon::bitplane_tbl::BitplaneTbl;
    #[cfg(target_arch = "aarch64")]
    aarch64::neon::tl1_tbl::Tl1TblLossy;
    #[cfg(target_arch = "aarch64")]
    aarch64::neon::tl1_tbl::Tl1Tbl;
    #[cfg(target_arch = "aarch64")]
    aarch64::neon::tl2_tbl::Tl2TblLossy;
    #[cfg(target_arch = "aarch64")]
    aarch64::neon::tl2_tbl::Tl2Tbl;
    #[cfg(target_arch = "aarch64")]
    aarch64::neon::vlut_add::VlutAdd;
    #[cfg(target_arch = "aarch64")]
    aarch64::neon::smlal::I8Smlal;
    #[cfg(target_arch = "aarch64")]
    aarch64::neon::smlal::Tq1Smlal;
    #[cfg(target_arch = "aarch64")]
    aarch64::neon::smlal::Tq2Smlal;
    #[cfg(target_arch = "aarch64")]
    aarch64::neon::smlal::B3Smlal;
    #[cfg(target_arch = "aarch64")]
    aarch64::neon::smlal::T5Smlal;
    #[cfg(target_arch = "aarch64")]
    aarch64::neon::smlal::I2sSmlal;
    #[cfg(target_arch = "aarch64")]
    aarch64::dotprod::sdot::I8Sdot;
    #[cfg(target_arch = "aarch64")]
    aarch64::dotprod::sdot::Tq1Sdot;
    #[cfg(target_arch = "aarch64")]
    aarch64::dotprod::sdot::Tq2Sdot;
    #[cfg(target_arch = "aarch64")]
    aarch64::dotprod::sdot::B3Sdot;
    #[cfg(target_arch = "aarch64")]
    aarch64::dotprod::sdot::T5Sdot;
    #[cfg(target_arch = "aarch64")]
    aarch64::dotprod::sdot::I2sSdot;
    #[cfg(target_arch = "aarch64")]
    aarch64::i8mm::smmla::I8Smmla;
    #[cfg(target_arch = "aarch64")]
    aarch64::i8mm::smmla::Tq1Smmla;
    #[cfg(target_arch = "aarch64")]
    aarch64::i8mm::smmla::Tq2Smmla;
    #[cfg(target_arch = "aarch64")]
    aarch64::i8mm::smmla::B3Smmla;
    #[cfg(target_arch = "aarch64")]
    aarch64::i8mm::smmla::T5Smmla;
    #[cfg(target_arch = "aarch64")]
    aarch64::i8mm::smmla::I2sSmmla;
}

/// The name of the kernel that stands for the oracle inside a model.
pub const ORACLE_KERNEL: &str = "scalar-i8-naive";

/// The kernels that run on this CPU, slowest ISA first.
pub fn supported() -> impl Iterator<Item = &'static dyn TernaryKernel> {
    KERNELS.iter().filter_map(|entry| entry.kernel().ok())
}

/// The kernel used when none is asked for: the last exact one of the list that runs here.
pub fn default_kernel() -> &'static dyn TernaryKernel {
    let exact = |kernel: &&dyn TernaryKernel| kernel.info().exactness == crate::kernel::Exactness::Exact;
    supported().filter(exact).last().expect("the scalar kernels run everywhere")
}

/// Why a kernel name was refused.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum LookupError {
    /// No such kernel.
    #[error("no kernel is called '{name}'; there are: {known}")]
    Unknown {
        /// The name asked for.
        name: String,
        /// All names, comma-separated.
        known: String,
    },
    /// The kernel cannot run on this CPU.
    #[error("kernel '{name}' cannot run here: {reason}; these can: {supported}")]
    Unsupported {
        /// The name asked for.
        name: String,
        /// What is missing.
        reason: String,
        /// Names of the kernels that run here.
        supported: String,
    },
}

/// Finds a kernel by name; `auto` gives [`default_kernel`].
pub fn find(name: &str) -> Result<&'static dyn TernaryKernel, LookupError> {
    if name == "auto" {
        return Ok(default_kernel());
    }
    let list = |names: Vec<&'static str>| names.join(", ");
    let Some(entry) = KERNELS.iter().find(|entry| entry.info.name == name) else {
        let known = list(KERNELS.iter().map(|entry| entry.info.name).collect());
        return Err(LookupError::Unknown { name: name.to_owned(), known });
    };
    entry.kernel().map_err(|reason| LookupError::Unsupported {
        name: name.to_owned(),
        reason: reason.to_string(),
        supported: list(supported().map(|kernel| kernel.info().name).collect()),
    })
}
