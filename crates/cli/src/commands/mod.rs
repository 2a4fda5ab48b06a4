//! One module a command. Each has its arguments and a `run`.

mod accept;
mod attend;
pub(crate) mod audit;
pub(crate) mod authority;
pub(crate) mod bench;
pub(crate) mod copy;
pub(crate) mod dev;
pub(crate) mod erase;
pub(crate) mod evidence;
pub(crate) mod extend;
pub(crate) mod guard;
pub(crate) mod history;
pub(crate) mod hold;
pub(crate) mod inspect;
pub(crate) mod log;
pub(crate) mod manual;
pub(crate) mod rebuild;
pub(crate) mod sign;
pub(crate) mod trail;
pub(crate) mod verify;
pub(crate) mod witness;
