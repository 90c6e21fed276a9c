//! The first bytes of a client that speaks TLS.

/// The least that is a `ClientHello` of TLS 1.2 with a server name.
pub fn hello(name: &str) -> Vec<u8> {
    let counted = |bytes: &[u8]| {
        let length = u16::try_from(bytes.len()).expect("a short name");
        [length.to_be_bytes().as_slice(), bytes].concat()
    };
    let server_name = counted(&[&[0], counted(name.as_bytes()).as_slice()].concat());
    let extensions = counted(&[&[0, 0], counted(&server_name).as_slice()].concat());
    let suites = counted(&[0xc0, 0x2f]);
    let body = [
        &[3, 3],
        [7; 32].as_slice(),
        &[0],
        &suites,
        &[1, 0],
        &extensions,
    ]
    .concat();
    let message = [&[1, 0], counted(&body).as_slice()].concat();
    [&[22, 3, 1], counted(&message).as_slice()].concat()
}
