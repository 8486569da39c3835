//! Reports: records become tables, plots and a ledger of claims with verdicts.
//!
//! Everything here is computed from raw records, every time; nothing that is derived is ever stored.

pub mod catalogue;
pub mod claims;
pub mod energy;
pub mod frame;
pub mod ledger;
pub mod markdown;
pub mod plots;
pub mod table;
pub mod twins;

pub use claims::judge;
pub use ledger::{Ledger, Row, Verdict};
