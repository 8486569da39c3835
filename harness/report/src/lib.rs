//! Reports: records become tables, plots and a ledger of claims with verdicts.
//!
//! Everything here is computed from raw records, every time; nothing that is derived is ever stored.

pub mod catalogue;
pub mod check;
pub mod claims;
pub mod compare;
pub mod document;
pub mod energy;
pub mod export;
pub mod frame;
pub mod html;
pub mod ledger;
pub mod markdown;
pub mod pairing;
pub mod plots;
pub mod rank;
pub mod run;
pub mod sections;
pub mod sums;
pub mod table;
pub mod twins;

pub use claims::judge;
pub use document::Document;
pub use ledger::{Ledger, Row, Verdict};
pub use run::Run;
