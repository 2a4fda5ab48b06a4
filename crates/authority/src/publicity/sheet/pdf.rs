//! The page as PDF 1.4: one page of A4, text in the fonts that every reader has,
//! the QR code as filled squares. Nothing is compressed, so that the bytes can be read.
//!
//! ```text
//! 1 catalogue  2 pages  3 page  4 content  5 information  6… fonts
//! ```

use super::qr::{MARGIN, Squares};
use super::{Part, Sheet, code_lines, long_date, time_of_day};

pub(super) fn document(sheet: &Sheet<'_>) -> Vec<u8> {
    let mut page = Page::default();
    draw(&mut page, sheet);
    file(&page.operators, sheet)
}

fn draw(page: &mut Page, sheet: &Sheet<'_>) {
    let at = sheet.data.time;
    page.label("CALENDAR PUBLICATION", TOP);
    let mut y = TOP - 44.0;
    let date = long_date(at);
    page.text(Font::Serif, 31.0, LEFT, y, &date);
    let beside = LEFT + Font::Serif.width(&date, 31.0) + 11.0;
    page.grey(0.27);
    page.text(
        Font::Serif,
        14.0,
        beside,
        y,
        &format!("{} UTC", time_of_day(at)),
    );
    y -= 22.0;
    for line in Font::Italic
        .wrap(&sheet.issuer.name, 14.0, WIDTH)
        .iter()
        .take(2)
    {
        page.text(Font::Italic, 14.0, LEFT, y, line);
        y -= 17.0;
    }
    page.grey(0.0);
    y = code(page, sheet, y - 3.0) - 24.0;
    y = page.paragraph(Font::Serif, 12.0, 16.0, LEFT, y, WIDTH, &sheet.lead());

    let sections = sheet.sections();
    let half = (WIDTH - GUTTER) / 2.0;
    let last = sections.len().saturating_sub(1);
    let mut beside: Option<f64> = None;
    for (at, section) in sections.iter().enumerate() {
        // The first and the last are as wide as the page, those between stand in pairs.
        let is_wide = at == 0 || at == last;
        let (x, width, from) = match beside.take() {
            Some(y) if !is_wide => (LEFT + half + GUTTER, half, y),
            _ if is_wide => (LEFT, WIDTH, y),
            _ => (LEFT, half, y),
        };
        let mut end = from - 11.0;
        page.text(Font::SansBold, 9.0, x, end, section.heading);
        end -= 14.5;
        for part in &section.parts {
            end = match part {
                Part::Text(text) => page.paragraph(Font::Serif, 10.5, 13.6, x, end, width, text),
                Part::Commands(lines) => page.commands(x, end, width, lines),
            };
        }
        let is_first_of_pair = !is_wide && x == LEFT && at + 1 < last;
        if is_first_of_pair {
            beside = Some(from);
            y = end;
        } else {
            y = y.min(end);
        }
    }
    facts(page, sheet);
}

/// The code between two rules, the QR code at its right. Returns where it ends.
fn code(page: &mut Page, sheet: &Sheet<'_>, top: f64) -> f64 {
    const SIZE: f64 = 20.5;
    const LEADING: f64 = 31.0;
    const QR: f64 = 142.0;
    let code = sheet.data.to_code();
    let lines = code_lines(&code);
    let height = (lines.len() as f64 * LEADING + 18.0).max(QR + 8.0);
    page.rule(top, 0.8);
    page.rule(top - height, 0.8);
    let block = lines.len() as f64 * LEADING;
    let mut y = top - (height - block) / 2.0 - LEADING / 2.0 - SIZE * 0.3;
    for line in &lines {
        page.text(Font::MonoBold, SIZE, LEFT, y, line);
        y -= LEADING;
    }
    if let Some(squares) = Squares::of(&code) {
        let unit = QR / f64::from(squares.size() + 2 * MARGIN);
        let (right, middle) = (LEFT + WIDTH, top - height / 2.0);
        // Its light margin is the page's own.
        let left = right - f64::from(squares.size()) * unit;
        let top = middle + QR / 2.0;
        for run in squares.runs() {
            let x = left + f64::from(run.x) * unit;
            let y = top - f64::from(run.y + MARGIN + 1) * unit;
            page.operator(&format!(
                "{x:.3} {y:.3} {:.3} {unit:.3} re",
                f64::from(run.length) * unit
            ));
        }
        page.operator("f");
    }
    top - height
}

/// At the foot, upwards: they are as many as they are.
fn facts(page: &mut Page, sheet: &Sheet<'_>) {
    const SIZE: f64 = 7.6;
    const LEADING: f64 = 11.4;
    let mut lines = Vec::new();
    for (name, value) in sheet.facts() {
        let mut name = Some(name);
        for part in Font::Mono.wrap(&value, SIZE, WIDTH - FACT_INDENT) {
            lines.push((name.take(), part));
        }
    }
    let top = BOTTOM + lines.len() as f64 * LEADING;
    page.rule(top + 4.0, 0.8);
    for (row, (name, value)) in lines.iter().enumerate() {
        let y = top - (row as f64 + 1.0) * LEADING + 1.0;
        if let Some(name) = name {
            page.grey(0.27);
            page.text(Font::Sans, SIZE, LEFT, y, name);
            page.grey(0.0);
        }
        page.text(Font::Mono, SIZE, LEFT + FACT_INDENT, y, value);
    }
}

/// What is drawn, in PDF's own words.
#[derive(Default)]
struct Page {
    operators: String,
}

impl Page {
    fn operator(&mut self, operator: &str) {
        self.operators += operator;
        self.operators.push('\n');
    }

    fn grey(&mut self, level: f64) {
        self.operator(&format!("{level} g"));
    }

    fn rule(&mut self, y: f64, width: f64) {
        self.operator(&format!(
            "{width} w {LEFT} {y:.2} m {:.2} {y:.2} l S",
            LEFT + WIDTH
        ));
    }

    fn text(&mut self, font: Font, size: f64, x: f64, y: f64, text: &str) {
        let hex: String = text
            .chars()
            .map(|c| format!("{:02x}", win_ansi(c)))
            .collect();
        let name = font.name();
        self.operator(&format!(
            "BT /{name} {size} Tf {x:.2} {y:.2} Td <{hex}> Tj ET"
        ));
    }

    /// Spaced capitals with a rule up to the right margin.
    fn label(&mut self, text: &str, y: f64) {
        const SIZE: f64 = 8.5;
        const SPACE: f64 = 1.3;
        self.operator(&format!("{SPACE} Tc"));
        self.text(Font::SansBold, SIZE, LEFT, y, text);
        self.operator("0 Tc");
        let spaces = SPACE * text.chars().count() as f64;
        let x = LEFT + Font::SansBold.width(text, SIZE) + spaces + 10.0;
        let y = y + SIZE * 0.36;
        self.operator(&format!(
            "0.8 w {x:.2} {y:.2} m {:.2} {y:.2} l S",
            LEFT + WIDTH
        ));
    }

    /// Returns where the next paragraph begins.
    #[allow(clippy::too_many_arguments, reason = "a box and what is in it")]
    fn paragraph(
        &mut self,
        font: Font,
        size: f64,
        leading: f64,
        x: f64,
        mut y: f64,
        width: f64,
        text: &str,
    ) -> f64 {
        for line in font.wrap(text, size, width) {
            self.text(font, size, x, y, &line);
            y -= leading;
        }
        y - leading * 0.3
    }

    /// Lines to be typed, with a rule at their left.
    fn commands(&mut self, x: f64, y: f64, width: f64, lines: &[String]) -> f64 {
        const SIZE: f64 = 8.0;
        const LEADING: f64 = 12.0;
        let mut end = y;
        for line in lines {
            for part in Font::Mono.wrap(line, SIZE, width - 10.0) {
                self.text(Font::Mono, SIZE, x + 10.0, end, &part);
                end -= LEADING;
            }
        }
        let (top, bottom) = (y + SIZE * 0.85, end + LEADING - SIZE * 0.35);
        self.operator(&format!("1.4 w {x:.2} {top:.2} m {x:.2} {bottom:.2} l S"));
        end - 9.0
    }
}

/// Fonts that every PDF reader has, so that none is embedded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Font {
    Serif,
    Italic,
    Sans,
    SansBold,
    Mono,
    MonoBold,
}

impl Font {
    const ALL: [Self; 6] = [
        Self::Serif,
        Self::Italic,
        Self::Sans,
        Self::SansBold,
        Self::Mono,
        Self::MonoBold,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Serif => "F1",
            Self::Italic => "F2",
            Self::Sans => "F3",
            Self::SansBold => "F4",
            Self::Mono => "F5",
            Self::MonoBold => "F6",
        }
    }

    fn base(self) -> &'static str {
        match self {
            Self::Serif => "Times-Roman",
            Self::Italic => "Times-Italic",
            Self::Sans => "Helvetica",
            Self::SansBold => "Helvetica-Bold",
            Self::Mono => "Courier",
            Self::MonoBold => "Courier-Bold",
        }
    }

    /// In points. Letters beyond ASCII, and those of fonts that are only set in
    /// short lines, are taken for somewhat wide ones.
    fn width(self, text: &str, size: f64) -> f64 {
        let of = |letter: char| match self {
            Self::Mono | Self::MonoBold => 600,
            Self::Sans | Self::SansBold => match letter {
                ' ' => 278,
                'I' => 278,
                'A'..='Z' => 722,
                _ => 600,
            },
            Self::Serif | Self::Italic => {
                let at = u32::from(letter).wrapping_sub(0x20) as usize;
                TIMES_WIDTHS.get(at).copied().unwrap_or(722)
            }
        };
        let thousandths: u32 = text.chars().map(of).sum();
        f64::from(thousandths) * size / 1000.0
    }

    /// Breaks `text` at spaces, and words that are longer than a line anywhere.
    fn wrap(self, text: &str, size: f64, width: f64) -> Vec<String> {
        let (mut lines, mut line) = (Vec::new(), String::new());
        for word in text.split_whitespace() {
            let extended = match line.is_empty() {
                true => word.to_owned(),
                false => format!("{line} {word}"),
            };
            if self.width(&extended, size) <= width {
                line = extended;
                continue;
            }
            if !line.is_empty() {
                lines.push(std::mem::take(&mut line));
            }
            for letter in word.chars() {
                line.push(letter);
                if self.width(&line, size) > width {
                    line.pop();
                    lines.push(std::mem::take(&mut line));
                    line.push(letter);
                }
            }
        }
        if !line.is_empty() {
            lines.push(line);
        }
        lines
    }
}

/// The letter's byte in the encoding of the fonts; a question mark if it has none.
fn win_ansi(letter: char) -> u8 {
    match letter {
        ' '..='~' | '\u{a0}'..='\u{ff}' => letter as u32 as u8,
        '\u{20ac}' => 0x80,
        '\u{2026}' => 0x85,
        '\u{160}' => 0x8a,
        '\u{152}' => 0x8c,
        '\u{17d}' => 0x8e,
        '\u{2018}' => 0x91,
        '\u{2019}' => 0x92,
        '\u{201c}' => 0x93,
        '\u{201d}' => 0x94,
        '\u{2013}' => 0x96,
        '\u{2014}' => 0x97,
        '\u{161}' => 0x9a,
        '\u{153}' => 0x9c,
        '\u{17e}' => 0x9e,
        '\u{178}' => 0x9f,
        _ => b'?',
    }
}

/// The objects, and the table that tells where each begins.
fn file(content: &str, sheet: &Sheet<'_>) -> Vec<u8> {
    let fonts: String = Font::ALL
        .iter()
        .enumerate()
        .map(|(at, font)| format!("/{} {} 0 R ", font.name(), FIRST_FONT + at))
        .collect();
    let mut objects = vec![
        "<< /Type /Catalog /Pages 2 0 R /Lang (en) /ViewerPreferences << /DisplayDocTitle true >> >>"
            .to_owned(),
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>".to_owned(),
        format!(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595.28 841.89] /Contents 4 0 R \
             /Resources << /Font << {fonts}>> >> >>"
        ),
        format!("<< /Length {} >>\nstream\n{content}endstream", content.len()),
        format!(
            "<< /Title {} /Author {} /Subject {} /Creator (Pitser) /CreationDate ({}) >>",
            utf16(&sheet.title()),
            utf16(&sheet.issuer.name),
            utf16(&sheet.data.to_code()),
            moment(sheet),
        ),
    ];
    objects.extend(Font::ALL.iter().map(|font| {
        format!(
            "<< /Type /Font /Subtype /Type1 /BaseFont /{} /Encoding /WinAnsiEncoding >>",
            font.base()
        )
    }));
    let mut out = "%PDF-1.4\n".to_owned();
    let mut table = String::from("0000000000 65535 f \n");
    for (at, object) in objects.iter().enumerate() {
        table += &format!("{:010} 00000 n \n", out.len());
        out += &format!("{} 0 obj\n{object}\nendobj\n", at + 1);
    }
    let (start, count) = (out.len(), objects.len() + 1);
    out += &format!(
        "xref\n0 {count}\n{table}trailer\n<< /Size {count} /Root 1 0 R /Info 5 0 R >>\n\
         startxref\n{start}\n%%EOF\n"
    );
    out.into_bytes()
}

/// The publication's second, as PDF writes instants: the page of a second is always
/// the same.
fn moment(sheet: &Sheet<'_>) -> String {
    let digits = sheet.data.time.to_string();
    let digits: String = digits.chars().filter(char::is_ascii_digit).collect();
    format!("D:{digits}Z")
}

fn utf16(text: &str) -> String {
    let units = text.encode_utf16().map(|unit| format!("{unit:04x}"));
    format!("<feff{}>", units.collect::<String>())
}

const FIRST_FONT: usize = 6;
const LEFT: f64 = 56.7;
const WIDTH: f64 = 595.28 - 2.0 * LEFT;
const TOP: f64 = 780.0;
const BOTTOM: f64 = 48.0;
const GUTTER: f64 = 24.0;
const FACT_INDENT: f64 = 70.0;

/// Of Times-Roman, from the space to the tilde, in thousandths of the size.
const TIMES_WIDTHS: [u32; 95] = [
    250, 333, 408, 500, 500, 833, 778, 180, 333, 333, 500, 564, 250, 333, 250, 278, 500, 500, 500,
    500, 500, 500, 500, 500, 500, 500, 278, 278, 564, 564, 564, 444, 921, 722, 667, 667, 722, 611,
    556, 722, 722, 333, 389, 722, 611, 889, 722, 722, 556, 722, 667, 556, 611, 722, 722, 944, 722,
    722, 611, 333, 278, 333, 469, 500, 333, 444, 500, 444, 500, 444, 333, 500, 500, 278, 278, 500,
    278, 778, 500, 500, 500, 500, 333, 389, 278, 500, 500, 722, 500, 500, 444, 480, 200, 480, 541,
];
