"""What the end of a session tells: the worst of its statistical tests."""


def pytest_terminal_summary(terminalreporter):
    reports = [r for r in terminalreporter.getreports("passed") if r.when == "call"]
    if found := [(z, r.nodeid) for r in reports for name, z in r.user_properties if name == "z"]:
        z, name = max(found)
        terminalreporter.write_line(f"worst |z| of {len(found)} statistical tests: {z:.2f}, {name}")
