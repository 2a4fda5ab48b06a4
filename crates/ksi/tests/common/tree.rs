//! A signature as a tree of elements, to be spoilt one element at a time.

use pitser_ksi::tlv::{Element, Flags, Reader, Tag, Writer};

/// An element, and how it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) tag: Tag,
    pub(crate) flags: Flags,
    /// Whether the header has 4 bytes although 2 would do.
    pub(crate) long: bool,
    pub(crate) body: Body,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    Value(Vec<u8>),
    Children(Vec<Node>),
}

impl Node {
    /// Reads a signature, down to what has a value of its own.
    pub(crate) fn read(signature: &[u8]) -> Node {
        Self::of(&Element::single(signature).unwrap(), &[])
    }

    pub(crate) fn value(tag: Tag, value: &[u8]) -> Node {
        Node {
            tag,
            flags: Flags::NONE,
            long: false,
            body: Body::Value(value.to_vec()),
        }
    }

    fn of(element: &Element<'_>, above: &[Tag]) -> Node {
        let path = [above, &[element.tag]].concat();
        let body = if is_container(&path) {
            let children = element
                .children()
                .map(|child| Self::of(&child.unwrap(), &path));
            Body::Children(children.collect())
        } else {
            Body::Value(element.value.to_vec())
        };
        Node {
            tag: element.tag,
            flags: element.flags(),
            long: element.is_long(),
            body,
        }
    }

    pub(crate) fn write(&self) -> Vec<u8> {
        let value = match &self.body {
            Body::Value(value) => value.clone(),
            Body::Children(children) => children.iter().flat_map(Node::write).collect(),
        };
        let mut writer = Writer::new();
        writer.flagged(self.tag, self.flags, &value);
        let written = writer.finish().unwrap();
        if !self.long || Reader::new(&written).element().unwrap().is_long() {
            return written;
        }
        let [first, length] = written[..2] else {
            panic!("a short header")
        };
        let header = [0x80 | first & 0x60, first & 0x1f, 0, length];
        [&header, &written[2..]].concat()
    }

    pub(crate) fn children(&mut self) -> &mut Vec<Node> {
        match &mut self.body {
            Body::Children(children) => children,
            Body::Value(_) => panic!("{:#x} has no children", self.tag),
        }
    }

    /// The places of all elements, this one first, each with its tags from the root.
    pub(crate) fn places(&self) -> Vec<(Vec<usize>, Vec<Tag>)> {
        let mut places = vec![(Vec::new(), vec![self.tag])];
        if let Body::Children(children) = &self.body {
            for (index, child) in children.iter().enumerate() {
                for (place, tags) in child.places() {
                    let place = [&[index][..], &place].concat();
                    places.push((place, [&[self.tag][..], &tags].concat()));
                }
            }
        }
        places
    }

    /// The element at a place.
    pub(crate) fn at(&mut self, place: &[usize]) -> &mut Node {
        match place {
            [] => self,
            [index, rest @ ..] => self.children()[*index].at(rest),
        }
    }
}

/// What has elements for a value; links of a calendar chain have not.
fn is_container(path: &[Tag]) -> bool {
    matches!(
        path,
        [0x0800]
            | [0x0800, 0x0801..=0x0806]
            | [0x0800, 0x0801, 0x07 | 0x08]
            | [0x0800, 0x0801, 0x07 | 0x08, 0x04]
            | [0x0800, 0x0803 | 0x0805, 0x10]
            | [0x0800, 0x0804 | 0x0805, 0x0b]
    )
}
