"""Long runs over real interfaces: nothing may leak, and the books must balance at every quiet point."""
