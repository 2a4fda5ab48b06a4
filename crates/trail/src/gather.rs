//! What the owner of a trail keeps from all lines, without reading them all again.

use pitser_evidence::line::Line;
use std::any::Any;
use std::fmt;

/// Something that follows from the lines of a trail, one after the other. It is
/// made durable with the map's commits, so that opening a long trail shows only
/// the lines that came after.
pub trait Gather: Default + fmt::Debug + Send + 'static {
    /// Names the form that [`Gather::save`] gives. What is saved in another
    /// form is gathered anew, from all lines.
    const FORM: &'static str;

    /// Takes the next line.
    fn line(&mut self, line: &Line);

    /// What [`Gather::load`] makes the same of.
    fn save(&self) -> Vec<u8>;

    /// `None` if `bytes` are of another form.
    fn load(bytes: &[u8]) -> Option<Self>;
}

/// Nothing is gathered; then no commits are made for those who want something.
impl Gather for () {
    const FORM: &'static str = "";

    fn line(&mut self, _: &Line) {}

    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    fn load(_: &[u8]) -> Option<Self> {
        Some(())
    }
}

/// [`Gather`], for whoever does not know what.
pub(crate) trait Gathers: fmt::Debug + Send {
    fn line(&mut self, line: &Line);
    fn save(&self) -> Vec<u8>;
    fn form(&self) -> &'static str;
    fn any(&mut self) -> &mut dyn Any;
}

impl<T: Gather> Gathers for T {
    fn line(&mut self, line: &Line) {
        Gather::line(self, line);
    }

    fn save(&self) -> Vec<u8> {
        Gather::save(self)
    }

    fn form(&self) -> &'static str {
        T::FORM
    }

    fn any(&mut self) -> &mut dyn Any {
        self
    }
}
