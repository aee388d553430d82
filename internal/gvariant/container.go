package gvariant

// arrayFrame tells where the elements of an array are.
type arrayFrame struct {
	array Value
	elem  *layout
	count int
	table int // start of the framing offsets; the end of the data when the element size is fixed
	width int // bytes per framing offset
}

// frameArray finds the elements. Elements of fixed size follow each other without offsets; for others a table
// at the end holds where each one ends, so the last offset is also where the table begins.
func (v Value) frameArray() (arrayFrame, error) {
	frame := arrayFrame{array: v, elem: v.layout.members[0], table: len(v.data)}
	if frame.elem.fixed() {
		if len(v.data)%frame.elem.size != 0 {
			return arrayFrame{}, v.notNormal("not a whole number of elements")
		}
		frame.count = len(v.data) / frame.elem.size
		return frame, nil
	}
	if len(v.data) == 0 {
		return frame, nil
	}
	frame.width = offsetWidth(len(v.data))
	last, ok := readOffset(v.data, len(v.data)-frame.width, frame.width)
	if !ok || last > len(v.data)-frame.width {
		return arrayFrame{}, v.notNormal("framing offsets outside of the array")
	}
	frame.table = last
	if (len(v.data)-last)%frame.width != 0 {
		return arrayFrame{}, v.notNormal("not a whole number of framing offsets")
	}
	frame.count = (len(v.data) - last) / frame.width
	return frame, nil
}

// element returns element i, which must be below count.
func (f arrayFrame) element(i int) (Value, error) {
	if f.elem.fixed() {
		return Value{layout: f.elem, data: f.array.data[i*f.elem.size:][:f.elem.size:f.elem.size]}, nil
	}
	start, end, ok := f.bounds(i)
	if !ok {
		return Value{}, f.array.notNormal("framing offsets out of order")
	}
	return Value{layout: f.elem, data: f.array.data[start:end:end]}, nil
}

func (f arrayFrame) bounds(i int) (start, end int, ok bool) {
	if i > 0 {
		if start, ok = f.offset(i - 1); !ok {
			return 0, 0, false
		}
	}
	start = alignUp(start, f.elem.align)
	end, ok = f.offset(i)
	return start, end, ok && start <= end
}

// offset returns where element i ends.
func (f arrayFrame) offset(i int) (int, bool) {
	end, ok := readOffset(f.array.data, f.table+i*f.width, f.width)
	return end, ok && end <= f.table
}

// tupleCursor walks over the members of a tuple or a dictionary entry. Members of fixed size lie where
// alignment puts them; the end of every other one but the last is in a table at the end, backwards.
type tupleCursor struct {
	tuple Value
	next  int // the member to read next
	pos   int // where the member read last ends
	table int // where the framing offset read last is
	width int // bytes per framing offset
}

func (v Value) tuple() tupleCursor {
	return tupleCursor{tuple: v, table: len(v.data), width: offsetWidth(len(v.data))}
}

// read returns the next member, which must exist, and the number of padding bytes before it.
func (c *tupleCursor) read() (Value, int, error) {
	data, members := c.tuple.data, c.tuple.layout.members
	l := members[c.next]
	start, end := alignUp(c.pos, l.align), c.table
	switch {
	case l.fixed():
		end = start + l.size
	case c.next < len(members)-1:
		c.table -= c.width
		offset, ok := readOffset(data, c.table, c.width)
		if !ok {
			return Value{}, 0, c.tuple.notNormal("framing offsets outside of the tuple")
		}
		end = offset
	}
	if start > end || end > c.table {
		return Value{}, 0, c.tuple.notNormal("framing offsets out of order")
	}
	padding := start - c.pos
	c.pos = end
	c.next++
	return Value{layout: l, data: data[start:end:end]}, padding, nil
}

// member returns member i of a tuple or a dictionary entry, which must exist.
func (v Value) member(i int) (Value, error) {
	cursor := v.tuple()
	for {
		child, _, err := cursor.read()
		if err != nil || cursor.next > i {
			return child, err
		}
	}
}

// reader returns a function that returns one child after the other, of as many as Len says.
func (v Value) reader() func() (Value, error) {
	switch v.layout.kind() {
	case 'a':
		frame, err := v.frameArray()
		i := -1
		return func() (Value, error) {
			if err != nil {
				return Value{}, err
			}
			i++
			return frame.element(i)
		}
	case 'm':
		return v.just
	case 'v':
		return v.Variant
	}
	cursor := v.tuple()
	return func() (Value, error) {
		child, _, err := cursor.read()
		return child, err
	}
}

// just returns what a maybe that is not empty holds: the value, and one NUL if its size varies.
func (v Value) just() (Value, error) {
	elem := v.layout.members[0]
	if elem.fixed() {
		return sized(elem, v.data)
	}
	end := len(v.data) - 1
	if end < 0 || v.data[end] != 0 {
		return Value{}, v.notNormal("a maybe must end in NUL")
	}
	return Value{layout: elem, data: v.data[:end:end]}, nil
}

// offsetWidth is how many bytes a framing offset takes in a container of the given size.
func offsetWidth(size int) int {
	switch {
	case size <= 0xff:
		return 1
	case size <= 0xffff:
		return 2
	case uint64(size) <= 0xffffffff:
		return 4
	}
	return 8
}

// readOffset reads the little-endian framing offset at pos.
func readOffset(data []byte, pos, width int) (int, bool) {
	if pos < 0 || pos+width > len(data) {
		return 0, false
	}
	var n uint64
	for i := width - 1; i >= 0; i-- {
		n = n<<8 | uint64(data[pos+i])
	}
	return int(n), n <= uint64(len(data))
}
